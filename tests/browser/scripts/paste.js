// Puts a text into a field at once, as pasting does.
(field, text) => {
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
}
