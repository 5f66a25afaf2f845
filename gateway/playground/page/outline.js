// Masks as outlines: COCO's compressed run-length encoding to a path that SVG draws sharp at any size.

const FIRST_CHARACTER = 48;
const MORE = 0x20;
const NEGATIVE = 0x10;

/** Lengths of the runs down the columns, those of unset pixels first. Throws Error where `counts` is broken. */
function runsOf(counts) {
  const runs = [];
  let value = 0;
  let shift = 0;
  for (const character of counts) {
    const bits = character.charCodeAt(0) - FIRST_CHARACTER;
    if (bits < 0 || bits >= 2 * MORE) throw new Error(`“${character}” is no part of an encoded mask.`);
    value += (bits & (MORE - 1)) * 2 ** shift;
    shift += 5;
    if (bits & MORE) continue;
    if (bits & NEGATIVE) value -= 2 ** shift;
    // From the third on a number is relative to the last but one.
    runs.push(value + (runs.length > 2 ? runs.at(-2) : 0));
    value = 0;
    shift = 0;
  }
  return runs;
}

/**
 * The path (an SVG `d`) around the set pixels of a mask of the API, holes by the even-odd rule, in pixels of the image.
 * It goes through the middles of the pixels' edges, which turns stairs into slopes.
 */
export function outlineOf({ size: [height, width], counts }) {
  // Column by column, as the runs go.
  const pixels = new Uint8Array(height * width);
  const tops = [];
  let place = 0;
  runsOf(counts).forEach((run, number) => {
    if (number % 2) {
      pixels.fill(1, place, place + run);
      if (run > 0) tops.push(place);
      // A run that goes on in the next column starts anew at its top.
      for (let top = (Math.floor(place / height) + 1) * height; top < place + run; top += height) tops.push(top);
    }
    place += run;
  });
  return tracePath(pixels, tops, height, width);
}

// Directions in which an edge goes along a pixel with the pixel to its right: right, down, left, up.
const STEPS = [
  [1, 0],
  [0, 1],
  [-1, 0],
  [0, -1],
];

/** `tops`: the set pixels that have none above them; every loop goes right along the top of one of them. */
function tracePath(pixels, tops, height, width) {
  const isSet = (x, y) => y >= 0 && y < height && x >= 0 && x < width && pixels[x * height + y] === 1;
  const followed = new Set();
  let path = "";
  for (const top of tops) {
    if (followed.has(top)) continue;
    path += loopFrom(Math.floor(top / height), top % height, isSet, (x, y) => followed.add(x * height + y));
  }
  return path;
}

/** One closed loop that starts along the top of pixel (`x`, `y`). */
function loopFrom(startX, startY, isSet, follow) {
  let [x, y, direction] = [startX, startY, 0];
  const points = [];
  do {
    if (direction === 0) follow(x, y);
    const [dx, dy] = STEPS[direction];
    points.push([x + dx / 2, y + dy / 2]);
    x += dx;
    y += dy;
    direction = turn(x, y, direction, isSet);
  } while (x !== startX || y !== startY || direction !== 0);
  return `M${straightened(points).map(([px, py]) => `${px} ${py}`).join("L")}Z`;
}

/** Where to go on from corner (`x`, `y`): right where pixels only touch at it, so that they stay apart. */
function turn(x, y, direction, isSet) {
  const [dx, dy] = STEPS[direction];
  // The pixels ahead to the left and to the right of the corner.
  const ahead = (side) => [x + (dx - 1) / 2 - (side * dy) / 2, y + (dy - 1) / 2 + (side * dx) / 2];
  if (!isSet(...ahead(1))) return (direction + 1) % 4;
  return isSet(...ahead(-1)) ? (direction + 3) % 4 : direction;
}

/** Without the points that lie on a line between their neighbours. */
function straightened(points) {
  return points.filter(([x, y], number) => {
    const [ax, ay] = points.at(number - 1);
    const [bx, by] = points[(number + 1) % points.length];
    return (x - ax) * (by - y) !== (y - ay) * (bx - x);
  });
}
