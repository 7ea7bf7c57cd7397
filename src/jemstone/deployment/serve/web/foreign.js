// Pictures that no data set holds, made here at the size of the model, always the same ones.

function random(seed) {
  // mulberry32: a small generator, so that the pictures are those of the last visit
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const noise = () => {
  const next = random(7);
  return () => next();
};

const gradient = (channels) => {
  const shift = channels === 1 ? 0 : 0.35;
  return (x, y, channel) => Math.min(1, Math.max(0, 0.15 + 0.7 * (0.6 * x + 0.4 * y) + shift * (channel - 1) * (x - y)));
};

const scene = () => {
  // A bright disc over two hills, with grain: the statistics of a photograph, roughly.
  const next = random(3);
  const tint = [
    [0.95, 0.85, 0.6],
    [0.55, 0.7, 0.85],
    [0.3, 0.45, 0.35],
    [0.15, 0.25, 0.2],
  ];
  return (x, y, channel) => {
    const far = 0.55 + 0.12 * Math.sin(5 * x + 1);
    const near = 0.75 + 0.1 * Math.sin(4 * x + 4);
    const disc = Math.hypot(x - 0.7, y - 0.28) < 0.16;
    const part = y > near ? 3 : y > far ? 2 : disc ? 0 : 1;
    return tint[part][channel] + 0.12 * (next() - 0.5);
  };
};

const stripes = () => (x, y) => 0.5 + 0.5 * Math.sign(Math.sin(20 * (x + 0.5 * y)));

const PICTURES = { noise, gradient, scene, stripes };

async function picture(value, [channels, height, width]) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const paint = canvas.getContext("2d");
  const pixels = paint.createImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    const [x, y] = [((i % width) + 0.5) / width, (Math.floor(i / width) + 0.5) / height];
    const grey = channels === 1 ? value(x, y, 1) : null;
    for (let c = 0; c < 3; c++) pixels.data[4 * i + c] = 255 * (grey ?? value(x, y, c));
    pixels.data[4 * i + 3] = 255;
  }
  paint.putImageData(pixels, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

export async function foreignPictures(shape) {
  const made = Object.entries(PICTURES).map(async ([name, maker]) => ({
    name,
    blob: await picture(maker(shape[0]), shape),
  }));
  return Promise.all(made);
}
