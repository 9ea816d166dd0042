// Cells are drawn as crisp blocks only when one image pixel covers a whole number of screen pixels, else they are smoothed.
const measure = () => {
  const picture = element.querySelector(".mosaic img");
  if (!picture || !picture.naturalWidth) return;
  const scale = (picture.getBoundingClientRect().width * devicePixelRatio) / picture.naturalWidth;
  element.dataset.scale = scale >= 1 && Math.abs(scale - Math.round(scale)) < 0.005 ? "whole" : "between";
};
element.addEventListener("load", measure, true); // load events do not bubble, but they can be captured
new ResizeObserver(measure).observe(element);
