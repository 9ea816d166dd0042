// Moves the mouse over the plot: one position a frame, which is what a browser passes on of a fast mouse, on a circle once a second.
(milliseconds) => new Promise((done) => {
  const plot = document.querySelector(".curve .plot"), path = plot.querySelector(".share");
  const box = plot.getBoundingClientRect(), times = [];
  let drawn = 0, before = null;
  const tick = (now) => {
    drawn += path.getAttribute("d") !== before;
    before = path.getAttribute("d");
    times.push(now);
    if (now - times[0] > milliseconds) return done({ times, drawn });
    const angle = (2 * Math.PI * (now - times[0])) / 1000;
    plot.dispatchEvent(new PointerEvent("pointermove", {
      pointerId: 1, pointerType: "mouse", altKey: true,
      clientX: box.x + box.width * (0.56 + 0.08 * Math.cos(angle)),
      clientY: box.y + box.height * (0.5 + 0.3 * Math.sin(angle)),
    }));
    requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
})
