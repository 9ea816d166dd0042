// A page of files as the host of parts: values are kept here, what would go to a server is kept in `sent`.

// Makes the old node like the fresh one and keeps what is alike, so that the keyboard's focus stays.
const match = (old, fresh) => {
  if (old.nodeName !== fresh.nodeName) return old.replaceWith(fresh.cloneNode(true));
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [before, after] = [old, fresh].map((node) => [...node.childNodes]);
  after.forEach((child, i) => (before[i] ? match(before[i], child) : old.append(child.cloneNode(true))));
  before.slice(after.length).forEach((child) => child.remove());
};

// draw: the HTML of a value, if that depends on it.
export const host = (element, value, props, draw) => {
  const watchers = [], sent = [];
  const show = () => {
    if (!draw) return;
    const fresh = element.cloneNode();
    fresh.innerHTML = draw(value);
    match(element, fresh);
  };
  show();
  return {
    props,
    sent,
    get value() { return value; },
    set value(next) { value = next; show(); },
    watch(name, fn) { watchers.push([name, fn]); },
    send(event, data) { sent.push([event, data]); },
    // What a server would do: change the value or a setting.
    change(name, next) {
      if (name === "value") this.value = next;
      else props[name] = next;
      for (const [watched, fn] of watchers) if (watched === name) fn();
    },
  };
};
