// How many different curves are drawn, the first included, after the first preset was pressed.
async (milliseconds) => {
  const path = document.querySelector(".curve .share"), seen = new Set([path.getAttribute("d")]);
  document.querySelector(".presets button").click();
  for (const start = performance.now(); performance.now() - start < milliseconds;) {
    await new Promise((done) => requestAnimationFrame(done));
    seen.add(path.getAttribute("d"));
  }
  return seen.size;
}
