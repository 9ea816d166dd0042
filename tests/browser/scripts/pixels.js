// The colours in the middle of every image pixel of a canvas in the viewer, and of one cell of a mosaic, as rows of [r, g, b].
([pane, arm, cell, side]) => {
  const read = (source, size, at) => {
    const canvas = new OffscreenCanvas(source.width ?? source.naturalWidth, source.height ?? source.naturalHeight);
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(source, 0, 0);
    return [...Array(size * size).keys()].map((k) => [...pen.getImageData(...at(k % size, Math.floor(k / size)), 1, 1).data].slice(0, 3));
  };
  const shown = document.querySelectorAll(".viewer canvas")[pane], block = shown.width / side;
  const picture = document.querySelectorAll(".mosaic img")[arm], across = picture.naturalWidth / side;
  const mosaic = new OffscreenCanvas(picture.naturalWidth, picture.naturalHeight);
  mosaic.getContext("2d").drawImage(picture, 0, 0);
  return [
    read(shown, side, (x, y) => [Math.floor((x + 0.5) * block), Math.floor((y + 0.5) * block)]),
    read(mosaic, side, (x, y) => [(cell % across) * side + x, Math.floor(cell / across) * side + y]),
  ];
}
