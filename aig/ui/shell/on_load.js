// What Gradio runs when a gr.HTML with a part inside is on the page. A function's body, not a module, with Gradio's element,
// props, trigger and watch.
const load = (module) => import(new URL(`${props.place}/${module}`, document.baseURI));
Promise.all([load("shell/gradio.js"), load("compare/page.js")])
  .then(([{ host }, { mount }]) => mount(props.part, element, host(props, trigger, watch)));
