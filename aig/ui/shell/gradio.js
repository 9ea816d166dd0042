// A part of the page is a module with a function mount(element, host). The element holds the part's HTML; what the part tells
// other parts are DOM events that bubble from there, what others may ask of it are the functions that mount returns.
// The host is whoever shows the part, and no more than this:
//   value              what the part shows; whoever assigns it has the HTML drawn anew, in a microtask at the latest
//   props              the part's other settings by name, which the host may change
//   watch(name, fn)    calls fn after the host, not the part, changed "value" or a setting and the HTML was drawn anew
//   send(event, data)  tells whoever is behind the host that something happened: "submit" in every part
// This is Gradio's gr.HTML as a host; tests/browser/static holds another.
export const host = (props, trigger, watch) => ({
  props,
  get value() { return props.value; },
  set value(value) { props.value = value; },
  watch,
  send: trigger,
});
