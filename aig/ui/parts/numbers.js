// Small arithmetic that several parts share.
export const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
export const modulo = (value, length) => ((value % length) + length) % length;
export const tidy = (number) => Number(number.toFixed(4));
export const percent = (number) => `${tidy(number * 100)}%`;
// Whether one pixel of an image covers a whole number of screen pixels, so that it can be drawn as a crisp block.
export const whole = (scale) => scale >= 1 && Math.abs(scale - Math.round(scale)) < 0.005;
