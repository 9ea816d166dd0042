// Whether all that is to be read in presenter mode is on the screen.
() => [...document.querySelectorAll(".arm h3, .arm dd, .sentence h2, .trace figcaption")].every((node) => {
  const box = node.getBoundingClientRect();
  return box.right <= innerWidth + 1 && box.bottom <= innerHeight && box.width > 0;
})
