// Players (one at a time, a cursor over every picture of a stage), and sound while it is made.
(() => {
  const stageOf = (player) => player.closest(".vc-stage") || player;
  let live = null;

  function place(player) {
    const audio = player.querySelector("audio"), scene = player.querySelector(".vc-scene");
    const length = audio.duration || parseFloat(player.dataset.seconds) || 0;
    if (!length) return;
    const stage = stageOf(player);
    stage.style.setProperty("--at", Math.min(1, audio.currentTime / length));
    stage.classList.toggle("vc-moved", audio.currentTime > 0);
    if (scene) {
      scene.setAttribute("aria-valuenow", audio.currentTime.toFixed(2));
      scene.setAttribute("aria-valuetext", audio.currentTime.toFixed(1) + " seconds");
    }
  }
  function follow(player) {
    const audio = player.querySelector("audio");
    place(player);
    if (!audio.paused && !audio.ended) requestAnimationFrame(() => follow(player));
  }
  function mark(audio, playing) {
    const player = audio.closest(".vc-player");
    if (!player) return;
    player.classList.toggle("vc-playing", playing);
    const button = player.querySelector(".vc-play");
    const label = button.getAttribute("aria-label").replace(/^(Play|Pause) /, "");
    button.setAttribute("aria-label", (playing ? "Pause " : "Play ") + label);
    if (playing) follow(player); else place(player);
  }
  function seek(player, part) {
    const audio = player.querySelector("audio");
    const length = audio.duration || parseFloat(player.dataset.seconds) || 0;
    audio.currentTime = Math.max(0, Math.min(length - 0.01, part * length));
    place(player);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest && event.target.closest(".vc-play");
    if (button) {
      const audio = button.closest(".vc-player").querySelector("audio");
      if (audio.paused) { stopLive(); audio.play().catch(() => {}); } else audio.pause();
      return;
    }
    const scene = event.target.closest && event.target.closest(".vc-scene");
    if (scene) {
      const box = scene.getBoundingClientRect(), player = scene.closest(".vc-player");
      seek(player, (event.clientX - box.left) / box.width);
      stopLive();
      player.querySelector("audio").play().catch(() => {});
    }
  });
  document.addEventListener("keydown", (event) => {
    const scene = event.target.closest && event.target.closest(".vc-scene");
    if (!scene) return;
    const player = scene.closest(".vc-player"), audio = player.querySelector("audio");
    const length = audio.duration || parseFloat(player.dataset.seconds) || 1;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowDown: -1, ArrowUp: 1 };
    if (event.key in steps) seek(player, (audio.currentTime + steps[event.key]) / length);
    else if (event.key === "Home") seek(player, 0);
    else if (event.key === "End") seek(player, 1);
    else if (event.key === " " || event.key === "Enter") player.querySelector(".vc-play").click();
    else return;
    event.preventDefault();
  });
  // Media events do not bubble, but they can be caught on their way down.
  document.addEventListener("play", (event) => {
    for (const other of document.querySelectorAll("audio")) if (other !== event.target) other.pause();
    if (event.target.closest) mark(event.target, true);
  }, true);
  for (const kind of ["pause", "ended"])
    document.addEventListener(kind, (event) => event.target.closest && mark(event.target, false), true);

  function stopLive() {
    if (!live) return;
    live.abort.abort();
    live.context.close().catch(() => {});
    live = null;
  }
  // 32-bit floats at 16 kHz, put one after the other on the audio clock as they arrive.
  async function listen(token) {
    const Context = window.AudioContext || window.webkitAudioContext;
    if (!Context) return;
    const mine = live = { context: new Context(), abort: new AbortController(), played: 0, at: 0 };
    window.vconv.heard = 0;
    try {
      const answer = await fetch("page/live/" + token, { signal: mine.abort.signal });
      if (!answer.ok || !answer.body) return;
      const reader = answer.body.getReader();
      let rest = new Uint8Array(0);
      for (;;) {
        const { value, done } = await reader.read();
        if (done || live !== mine) break;
        const bytes = new Uint8Array(rest.length + value.length);
        bytes.set(rest); bytes.set(value, rest.length);
        const count = bytes.length >> 2;
        rest = bytes.slice(count * 4);
        if (!count) continue;
        const samples = new Float32Array(bytes.buffer.slice(0, count * 4));
        const buffer = mine.context.createBuffer(1, count, 16000);
        buffer.copyToChannel(samples, 0);
        const source = mine.context.createBufferSource();
        source.buffer = buffer;
        source.connect(mine.context.destination);
        mine.at = Math.max(mine.at, mine.context.currentTime + 0.3 * (mine.played === 0));
        source.start(mine.at);
        mine.at += count / 16000;
        mine.played += count;
        window.vconv.heard = mine.played;
      }
    } catch (error) { /* stopped, or the server has left: the result can still be played */ }
  }
  const tokens = {};
  window.vconv = {
    heard: 0,
    // Before a job: its token, which is the last of its inputs; and the ear, if it may be heard.
    begin(kind, inputs, aloud) {
      const bytes = crypto.getRandomValues(new Uint8Array(18));
      tokens[kind] = Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
      stopLive();
      document.querySelectorAll("audio").forEach((audio) => audio.pause());
      window.vconv.heard = 0;
      window.vconv.waiting = aloud;
      if (aloud) listen(tokens[kind]);
      return [...inputs.slice(0, -1), tokens[kind]];
    },
    // After a job: what could not be heard while it was made is played now.
    ended(place) {
      if (window.vconv.heard > 0) return;
      const button = document.querySelector("#" + place + " .vc-is-result .vc-play");
      if (button && window.vconv.waiting) button.click();
      window.vconv.waiting = false;
    },
    stop(kind) { stopLive(); window.vconv.waiting = false; return [tokens[kind] || ""]; },
  };
  document.documentElement.lang = "en";
})();
