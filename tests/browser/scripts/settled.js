// Resolves when the curve has been drawn and has stopped moving.
async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  const path = () => document.querySelector(".curve .share").getAttribute("d");
  let before = null;
  for (let calm = 0; calm < 3; calm = path() === before ? calm + 1 : 0, before = path()) await frame();
}
