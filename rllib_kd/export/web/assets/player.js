"use strict";
{
  const data = JSON.parse(document.getElementById("data").textContent);
  const student = (window.student = makeStudent(data.network));
  const $ = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shown = (value) => (value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(3) : value.toPrecision(4));
  const size = data.inputs.length;

  function element(kind, className, ...children) {
    const made = document.createElement(kind);
    made.className = className;
    made.append(...children); // text stays text
    return made;
  }

  // Rows of Q-values, one for each action. Bars show by how much each is above the worst legal one.
  function makeBars(place) {
    const rows = data.actions.map((name) => {
      const fill = element("div", "fill"), value = element("span", "");
      const row = element("div", "bar", element("span", "", name), element("div", "track", fill), value);
      place.append(row);
      return { row, fill, value };
    });
    return (q) => {
      const legal = q.filter((each) => each !== -Infinity), best = student.best(q);
      const low = Math.min(...legal), range = Math.max(...legal) - low || 1;
      rows.forEach(({ row, fill, value }, i) => {
        const isLegal = q[i] !== -Infinity;
        fill.style.width = isLegal ? `${5 + (95 * (q[i] - low)) / range}%` : "0";
        value.textContent = isLegal ? shown(q[i]) : "illegal";
        row.classList.toggle("best", i === best);
      });
    };
  }

  // --- Recorded episodes ---------------------------------------------------------------------------------------------

  function showEpisodes() {
    const drawBars = makeBars($("step-bars"));
    const episodes = data.episodes.map((episode) => ({
      ...episode,
      obs: decodeFloats(episode.obs),
      rewards: decodeFloats(episode.rewards),
      regret: episode.regret === null ? null : decodeFloats(episode.regret),
    }));
    episodes.forEach((episode, i) => $("episode").append(new Option(`${i + 1}: seed ${episode.seed}, return ${shown(episode.return)}`, String(i))));
    let episode = episodes[0], timer = null;
    const observation = (step) => episode.obs.subarray(step * size, (step + 1) * size);
    const mask = (step) => episode.masks && episode.masks[step];

    function drawStrip(step) {
      const canvas = $("strip"), context = canvas.getContext("2d"), { width, height } = canvas;
      const values = episode.regret ?? episode.rewards, largest = Math.max(...values.map(Math.abs), 1e-9);
      context.clearRect(0, 0, width, height);
      context.fillStyle = colour("--bar");
      values.forEach((value, i) => {
        const tall = (Math.abs(value) / largest) * (height - 6);
        context.fillRect((i * width) / values.length, height - tall, Math.max(width / values.length, 1), tall);
      });
      context.fillStyle = colour("--best");
      context.fillRect(((step + 0.5) * width) / values.length - 1, 0, 3, height);
      $("strip-text").textContent = `${episode.regret ? "Regret" : "Reward"} of each step: ${shown(Math.min(...values))} to ${shown(Math.max(...values))}.`;
      canvas.setAttribute("aria-label", $("strip-text").textContent);
    }

    function draw() {
      const step = Number($("step").value), q = student.qValues(observation(step), mask(step));
      const frame = episode.frames.filter((each) => each.step <= step).at(-1);
      $("frame").hidden = frame === undefined;
      if (frame !== undefined) $("frame").src = frame.src;
      $("no-frame").textContent = frame === undefined ? data.noFrames : "";
      const total = episode.rewards.slice(0, step).reduce((sum, value) => sum + value, 0);
      $("step-text").textContent = `Step ${step} of ${episode.rewards.length - 1}. Return so far: ${shown(total)}. The student takes ${data.actions[episode.actions[step]]}.`;
      drawBars(q);
      $("regret-text").textContent = episode.regret === null ? "" :
        `The teacher takes ${data.actions[episode.teacherActions[step]]}. Regret: ${shown(episode.regret[step])} ${data.regretUnit}.`;
      drawStrip(step);
      setObservation(Array.from(observation(step)), mask(step));
    }

    function stop() {
      clearInterval(timer);
      timer = null;
      $("play").textContent = "Play";
    }
    function move(by) {
      const step = Number($("step").value) + by;
      if (step >= episode.rewards.length || step < 0) return stop();
      $("step").value = String(step);
      draw();
    }
    function choose() {
      stop();
      episode = episodes[Number($("episode").value)];
      $("step").max = String(episode.rewards.length - 1);
      $("step").value = "0";
      draw();
    }
    $("episode").onchange = choose;
    $("step").oninput = () => { stop(); draw(); };
    $("back").onclick = () => { stop(); move(-1); };
    $("forth").onclick = () => { stop(); move(1); };
    $("play").onclick = () => {
      if (timer !== null) return stop();
      if (Number($("step").value) === episode.rewards.length - 1) $("step").value = "0";
      $("play").textContent = "Pause";
      timer = setInterval(() => move(1), 40);
    };
    $("episodes").hidden = false;
    choose();
  }

  // --- Ask the student -----------------------------------------------------------------------------------------------

  const askBars = makeBars($("ask-bars"));
  const sliders = data.inputs.slice(0, data.maxSliders).map(({ name, low, high, step }) => {
    const slider = element("input", ""), value = element("span", "");
    Object.assign(slider, { type: "range", min: low, max: high, step });
    $("sliders").append(element("label", "slider", element("span", "", name), slider, value));
    return { slider, value };
  });
  // Boxes for the legal actions, if episodes have masks.
  const boxes = !data.episodes.some((episode) => episode.masks) ? [] : data.actions.map((name) => {
    const box = element("input", "");
    Object.assign(box, { type: "checkbox", checked: true });
    box.onchange = () => answer(asked);
    $("legal").append(element("label", "", box, ` ${name}`));
    return box;
  });
  $("legal").hidden = boxes.length === 0;
  let asked = data.inputs.map(({ low, high }) => (low + high) / 2);

  function answer(observation) {
    asked = observation;
    const legal = boxes.length === 0 ? null : boxes.map(({ checked }) => checked);
    if (legal && !legal.includes(true)) {
      $("ask-text").textContent = "No action is legal.";
      return;
    }
    const q = student.qValues(observation, legal), best = student.best(q);
    askBars(q);
    $("ask-text").textContent = best < 0 ? "The Q-values are not finite." : `The student takes ${data.actions[best]}.`;
    sliders.forEach(({ value }, i) => { value.textContent = shown(observation[i]); });
    $("typed-text").textContent = "";
  }
  function setObservation(observation, mask = null) {
    boxes.forEach((box, i) => { box.checked = mask === null || mask[i]; });
    $("typed").value = observation.map((value) => Number(value.toPrecision(7))).join(", ");
    sliders.forEach(({ slider }, i) => { slider.value = String(observation[i]); });
    answer(observation);
  }
  sliders.forEach(({ slider }, i) => {
    slider.oninput = () => {
      const observation = asked.slice();
      observation[i] = Number(slider.value);
      $("typed").value = observation.map((value) => Number(value.toPrecision(7))).join(", ");
      answer(observation);
    };
  });
  $("typed").oninput = () => {
    const words = $("typed").value.split(/[\s,;[\]]+/).filter((word) => word !== "");
    const observation = words.map(Number);
    if (words.length !== size || !observation.every(Number.isFinite)) {
      $("typed-text").textContent = `Expected ${size} number${size === 1 ? "" : "s"}, separated by commas.`;
      return;
    }
    sliders.forEach(({ slider }, i) => { slider.value = String(observation[i]); });
    answer(observation);
  };
  setObservation(asked);

  // --- Push the pole -------------------------------------------------------------------------------------------------

  function showPole(physics) {
    let state = [0, 0, 0.02, 0], push = 0, running = true, steps = 0, falls = 0;
    const canvas = $("cart"), context = canvas.getContext("2d");

    function draw() {
      const { width, height } = canvas, scale = width / (2.4 * physics.x_threshold), ground = height - 40;
      const x = width / 2 + state[0] * scale, length = 2 * physics.length * scale;
      context.clearRect(0, 0, width, height);
      context.lineWidth = 2;
      context.strokeStyle = colour("--line");
      context.beginPath();
      context.moveTo(0, ground); context.lineTo(width, ground);
      for (const side of [-1, 1]) {
        const end = width / 2 + side * physics.x_threshold * scale;
        context.moveTo(end, ground - 14); context.lineTo(end, ground + 14);
      }
      context.stroke();
      context.fillStyle = colour("--fg");
      context.fillRect(x - 36, ground - 22, 72, 26);
      context.strokeStyle = colour("--warn");
      context.lineWidth = 10;
      context.lineCap = "round";
      context.beginPath();
      context.moveTo(x, ground - 20);
      context.lineTo(x + Math.sin(state[2]) * length, ground - 20 - Math.cos(state[2]) * length);
      context.stroke();
      $("pole-text").textContent = `${steps} steps, ${falls} ${falls === 1 ? "fall" : "falls"}`;
    }
    function reset() {
      state = [0, 0, 0, 0].map(() => Math.random() * 0.1 - 0.05);
      steps = 0;
    }
    function step() {
      state = cartPoleStep(physics, state, student.act(state), push);
      push = 0;
      steps += 1;
      if (cartPoleHasFallen(physics, state)) { falls += 1; reset(); }
    }
    const shove = (side) => { push += side * Number($("strength").value); };
    $("push-left").onclick = () => shove(-1);
    $("push-right").onclick = () => shove(1);
    $("reset").onclick = () => { falls = 0; reset(); draw(); };
    $("run").onclick = () => { running = !running; $("run").textContent = running ? "Pause" : "Run"; };
    document.addEventListener("keydown", (event) => {
      if (/^(INPUT|SELECT)$/.test(event.target.tagName) || !/^Arrow(Left|Right)$/.test(event.key)) return;
      event.preventDefault();
      shove(event.key === "ArrowLeft" ? -1 : 1);
    });
    setInterval(() => { if (running && !document.hidden) { step(); draw(); } }, 1000 * physics.tau);
    $("pole").hidden = false;
    draw();
  }

  if (data.episodes.length > 0) showEpisodes();
  if (data.cartpole !== null) showPole(data.cartpole);
}
