// Whether there are this many dots and the last one stands at x.
([count, x]) => {
  const dots = document.querySelectorAll(".curve .dot"), last = dots[count - 1]?.getBoundingClientRect();
  return dots.length === count && Math.abs(last.x + last.width / 2 - x) < 0.6;
}
