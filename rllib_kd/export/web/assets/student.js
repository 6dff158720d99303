"use strict";
// The student: from one observation, a list of numbers, to Q-values. It touches no page, and runs in any JavaScript.
// A mask, a list of truth values, says which actions are legal: the Q-values of the others are -Infinity.

function decodeFloats(text) {
  // Node before 16 has no atob.
  const bytes = typeof atob === "undefined" ? Buffer.from(text, "base64") : Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(Uint8Array.from(bytes).buffer);
}

function makeStudent(network) {
  const arrays = {};
  for (const [name, text] of Object.entries(network.arrays)) arrays[name] = decodeFloats(text);
  const mean = (x) => x.reduce((sum, v) => sum + v, 0) / x.length;

  const ops = {
    relu: (x) => x.map((v) => Math.max(v, 0)),
    tanh: (x) => x.map(Math.tanh),
    sigmoid: (x) => x.map((v) => 1 / (1 + Math.exp(-v))),
    silu: (x) => x.map((v) => v / (1 + Math.exp(-v))),
    elu: (x) => x.map((v) => (v > 0 ? v : Math.expm1(v))),
    flatten: (x) => x,
    linear(x, layer) {
      const weight = arrays[layer.weight];
      return Array.from(arrays[layer.bias], (bias, i) => {
        let sum = bias;
        for (let j = 0, k = i * x.length; j < x.length; j++, k++) sum += weight[k] * x[j];
        return sum;
      });
    },
    layer_norm(x, layer) {
      const center = mean(x), scale = Math.sqrt(mean(x.map((v) => (v - center) ** 2)) + layer.eps);
      return x.map((v, i) => ((v - center) / scale) * arrays[layer.weight][i] + arrays[layer.bias][i]);
    },
    normalize(x, layer) {
      const scaled = x.map((v, i) => (v - arrays[layer.mean][i]) / arrays[layer.std][i]);
      return layer.clip === null ? scaled : scaled.map((v) => Math.min(Math.max(v, -layer.clip), layer.clip));
    },
    one_hot: (x, layer) => layer.lengths.flatMap((n, i) => Array.from({ length: n }, (_, k) => (x[i] === k ? 1 : 0))),
    dueling(x, layer) {
      const advantage = run(layer.advantage, x), value = run(layer.value, x)[0], center = mean(advantage);
      return advantage.map((v) => value + v - center);
    },
    expectation(x, layer) {
      const n = layer.num_atoms, step = (layer.v_max - layer.v_min) / (n - 1);
      return Array.from({ length: x.length / n }, (_, action) => {
        const logits = x.slice(action * n, (action + 1) * n), largest = Math.max(...logits);
        const weights = logits.map((v) => Math.exp(v - largest));
        return weights.reduce((sum, w, k) => sum + w * (layer.v_min + k * step), 0) / weights.reduce((a, b) => a + b);
      });
    },
    tree(x, layer) {
      const { first, operation, second, left, right } = layer, thresholds = arrays[layer.threshold];
      const compared = {
        "": (a) => a,
        "-": (a, b) => Math.fround(a - b),
        "+": (a, b) => Math.fround(a + b),
        "*": (a, b) => Math.fround(a * b),
      };
      let node = 0;
      while (node < first.length) {
        const number = compared[operation[node]](x[first[node]], x[second[node]]);
        node = number <= thresholds[node] ? left[node] : right[node];
      }
      const values = arrays[layer.values], leaf = node - first.length, count = values.length / (first.length + 1);
      return Array.from(values.subarray(leaf * count, (leaf + 1) * count));
    },
  };
  const run = (layers, x) => layers.reduce((values, layer) => ops[layer.op](values, layer), x);

  const qValues = (observation, mask = null) =>
    run(network.layers, Array.from(observation, Math.fround)).map((q, i) => (mask === null || mask[i] ? q : -Infinity));
  const best = (values) => {
    const most = Math.max(...values);
    return most === -Infinity ? -1 : values.indexOf(most); // of equal ones the first; -1 if one is NaN, or none is legal
  };
  return { qValues, best, act: (observation, mask) => best(qValues(observation, mask)) };
}
