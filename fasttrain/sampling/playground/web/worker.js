// One of the page's workers: a runtime of its own, one job at a time.
let evaluate = null;
let model = null;

onmessage = ({ data }) => {
  if (data.start) {
    const { wasm, weights, about } = data.start;
    model = about;
    evaluate = createRuntime(wasm, weights, about.programs);
    postMessage({ ready: true });
    return;
  }
  const { id, name, z, label, repeat } = data;
  const hot = oneHot(label, model.classes.length);
  const times = [];
  let image = null;
  for (let i = 0; i < repeat; i++) {
    const start = performance.now();
    for (const [count, estimate] of sample(evaluate, name, model.samplers[name], z, hot)) {
      image = estimate;
      if (count > 2) postMessage({ id, count, image });
    }
    times.push(performance.now() - start);
  }
  times.sort((a, b) => a - b);
  postMessage({ id, done: true, image, time: times[times.length >> 1] });
};
