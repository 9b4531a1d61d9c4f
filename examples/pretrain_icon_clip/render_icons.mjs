// Draws the pretraining icons: `node render_icons.mjs FAMILIES.json OUT_DIR`, after `npm install` (see README.md).
//
// Takes only the families listed under "pretraining" in FAMILIES.json, and of those only the ones under a
// licence listed below. Writes OUT_DIR/pictures.bin (uint8, one 48 x 48 x 3 picture after another, black or
// coloured on white) and OUT_DIR/pictures.json (the name of each picture, its family and its icon).
import { createRequire } from "node:module";
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { Resvg } from "@resvg/resvg-js";

const SIDE = 48;
const MIN_OCCURRENCES = 6; // rarer names teach a vocabulary nobody asks for
const VARIANTS_PER_FAMILY = 2; // an outline and a filled one, not ten weights of one drawing
const LICENSES = new Set([
  "MIT", "Apache-2.0", "CC0-1.0", "CC-BY-4.0", "CC-BY-3.0", "ISC", "BSD-3-Clause", "Unlicense",
]);
// Words that say how an icon is drawn, not what it shows.
const STYLE_WORDS = new Set(
  ("outline outlined filled fill line linear solid bold light thin regular duotone twotone sharp round " +
    "rounded broken alt alternate baseline black color colour mini micro extralight rtl ltr o tone " +
    "two dark medium semibold logo bulk oval lineal thick ios md monotone left-fill")
    .split(" "),
);

// Drawn far outside their frame; resvg aborts the whole process on them.
const UNDRAWABLE = new Set(["noto:package", "noto-v1:ambulance"]);

const require = createRequire(join(process.cwd(), "anywhere.js"));
const [familiesPath, outDir] = process.argv.slice(2);
const families = JSON.parse(readFileSync(familiesPath, "utf8"));
const collections = require("@iconify/json/collections.json");

/** "arrow-down-20-filled" -> "arrow down"; empty when nothing but style is left. */
function plainName(icon) {
  const words = icon.toLowerCase().split(/[-_]+/);
  const kept = words.filter((word) => !STYLE_WORDS.has(word) && !/^\d+(px|x\d+)?$/.test(word));
  return kept.filter((word) => word.length > 0).join(" ");
}

/** Two variants spread over the alphabetical list, which is where the style words differ most. */
function pickVariants(icons) {
  if (icons.length <= VARIANTS_PER_FAMILY) return icons;
  const step = (icons.length - 1) / (VARIANTS_PER_FAMILY - 1);
  return Array.from({ length: VARIANTS_PER_FAMILY }, (_, i) => icons[Math.round(i * step)]);
}

function chooseIcons() {
  const byName = new Map();
  for (const family of families.pretraining) {
    const license = collections[family]?.license?.spdx;
    if (families.held_out.includes(family) || !LICENSES.has(license)) {
      throw new Error(`family ${family} must not be used (licence ${license})`);
    }
    const variants = new Map();
    for (const [icon, drawing] of Object.entries(require(`@iconify/json/json/${family}.json`).icons)) {
      const name = plainName(icon);
      if (!name || drawing.hidden || UNDRAWABLE.has(`${family}:${icon}`)) continue;
      if (!variants.has(name)) variants.set(name, []);
      variants.get(name).push(icon);
    }
    for (const [name, icons] of variants) {
      if (!byName.has(name)) byName.set(name, []);
      for (const icon of pickVariants(icons.sort())) byName.get(name).push({ name, family, icon });
    }
  }
  const frequent = [...byName.values()].filter((icons) => icons.length >= MIN_OCCURRENCES);
  return frequent.flat().sort((a, b) => (a.family < b.family ? -1 : a.family > b.family ? 1 : 0));
}

/** SIDE x SIDE RGB bytes: the icon, centred, on white; `null` when nothing is drawn. */
function draw(set, icon) {
  const drawing = set.icons[icon];
  const [left, top] = [drawing.left ?? set.left ?? 0, drawing.top ?? set.top ?? 0];
  const [width, height] = [drawing.width ?? set.width ?? 16, drawing.height ?? set.height ?? 16];
  const svg =
    `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="#000" ` +
    `width="${SIDE}" height="${SIDE}" viewBox="${left} ${top} ${width} ${height}">${drawing.body}</svg>`;
  const image = new Resvg(svg, { background: "#fff", font: { loadSystemFonts: false } }).render();
  const rgba = image.pixels;
  const rgb = Buffer.alloc(SIDE * SIDE * 3);
  for (let i = 0; i < SIDE * SIDE; i++) rgba.copy(rgb, i * 3, i * 4, i * 4 + 3);
  return rgb.every((value) => value === 255) ? null : rgb;
}

mkdirSync(outDir, { recursive: true });
const chosen = chooseIcons();
const file = openSync(join(outDir, "pictures.bin"), "w");
const drawn = [];
let current = { prefix: null };
for (const entry of chosen) {
  if (current.prefix !== entry.family) current = require(`@iconify/json/json/${entry.family}.json`);
  let rgb = null;
  try {
    rgb = draw(current, entry.icon);
  } catch (error) {
    console.error(`left out ${entry.family}:${entry.icon}: ${error.message}`);
  }
  if (rgb) drawn.push(entry) && writeSync(file, rgb);
}
closeSync(file);
writeFileSync(join(outDir, "pictures.json"), JSON.stringify(drawn));
const names = new Set(drawn.map((entry) => entry.name));
console.log(`${drawn.length} pictures of ${names.size} names from ${families.pretraining.length} families`);
