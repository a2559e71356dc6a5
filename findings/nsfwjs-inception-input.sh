#!/usr/bin/env bash
# What: the range of grey values that the Inception v3 of nsfwjs is fed with, by the package's own
#       infer(), for a picture whose values go from 0 to 255. It is the one Inception whose weights
#       come inside a package, and so a network for distances between pictures where no other can
#       be downloaded.
# Guess: -1 to 1, as every Inception v3 of Keras is, and as torchvision feeds weights of this origin.
# Seen: 0 to 1, enlarged to 299 x 299 with the corners aligned. Its weights are 8-bit, and in the
#       second normalisation two of 32 variances have become 0, so that only epsilon (1e-3, not
#       torch's 1e-5) keeps them from dividing by 0.
# For cell video: background near 0 would be fed as near -1, the whole contrast doubled. Features
#       come out finite in both ways and nothing complains, but distances between pictures of cells
#       made in one way cannot be compared to those made in the other. Write the range down beside
#       the name of the network.
# Versions: nsfwjs 4.4.0, @tensorflow/tfjs 4.22.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm init -y >/dev/null
npm install --silent --ignore-scripts --no-audit --no-fund nsfwjs@4.4.0 @tensorflow/tfjs@4.22.0
cat >show.js <<'JS'
const assert = require("assert");
const tf = require("@tensorflow/tfjs");
const { NSFWJS } = require("nsfwjs/core");

let fed;
const network = new NSFWJS("nowhere/", { size: 299 });
network.model = {
  predict: (batch) => {
    fed = [batch.min().dataSync()[0], batch.max().dataSync()[0], batch.shape.join(" x ")];
    return batch.mean();
  },
};
network.infer(tf.range(0, 256).reshape([16, 16, 1]).tile([1, 1, 3]));
console.log("0 to 255 is fed as", fed);
assert.deepStrictEqual(fed, [0, 1, "1 x 299 x 299 x 3"]);

const folder = "./node_modules/nsfwjs/dist/models/inception_v3/";
const load = (name) => { const found = require(folder + name); return found.default || found; };
const shards = [1, 2, 3, 4, 5, 6].map((k) => Buffer.from(load(`group1-shard${k}of6.min.js`), "base64"));
const codes = Buffer.concat(shards);
let first = 0, zeros = 0;
for (const array of load("model.min.js").weightsManifest[0].weights) {
  const size = array.shape.reduce((a, b) => a * b, 1);
  const { min, scale } = array.quantization;
  if (array.name === "batch_normalization_2/moving_variance") {
    for (const code of codes.subarray(first, first + size)) zeros += code * scale + min < 1e-9;
    console.log(zeros, "of", size, "variances are 0");
  }
  first += size;
}
assert.strictEqual(first, codes.length);
assert.strictEqual(zeros, 2);
JS
node show.js
