// News of a part for the page around it: a DOM event that bubbles from the part's element.
export const tell = (element, news, detail) => element.dispatchEvent(new CustomEvent(`aig:${news}`, { detail, bubbles: true }));
