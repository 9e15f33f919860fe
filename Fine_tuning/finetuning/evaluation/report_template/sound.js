const RATE = 16000; // Hz, of what is drawn
const [FFT_SIZE, WINDOW] = [512, 400]; // samples: 32 and 25 ms
const MOST_FRAMES = 1600; // columns of a spectrogram
const RANGE_DB = 70; // below the loudest, the rest is as silence

/** In place, radix 2 (Cooley and Tukey 1965): the discrete Fourier transform of as many numbers as a power of 2. */
function transform(real, imaginary) {
  const size = real.length;
  for (let i = 1, j = 0; i < size; i++) {
    let bit = size >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imaginary[i], imaginary[j]] = [imaginary[j], imaginary[i]];
    }
  }
  for (let half = 1; half < size; half *= 2) {
    for (let k = 0; k < half; k++) {
      const [cos, sin] = [Math.cos((Math.PI * k) / half), -Math.sin((Math.PI * k) / half)];
      for (let i = k; i < size; i += 2 * half) {
        const j = i + half;
        const [a, b] = [real[j] * cos - imaginary[j] * sin, real[j] * sin + imaginary[j] * cos];
        [real[j], imaginary[j]] = [real[i] - a, imaginary[i] - b];
        [real[i], imaginary[i]] = [real[i] + a, imaginary[i] + b];
      }
    }
  }
}
/** Power in dB, frames of FFT_SIZE / 2 bins from 0 to half the rate, by a Hann window of 25 ms. */
function spectrogram(samples) {
  const hop = Math.max(RATE / 100, Math.ceil(samples.length / MOST_FRAMES));
  const hann = Float64Array.from({length: WINDOW}, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / WINDOW));
  return Array.from({length: Math.max(1, Math.ceil((samples.length - WINDOW) / hop))}, (_, frame) => {
    const [real, imaginary] = [new Float64Array(FFT_SIZE), new Float64Array(FFT_SIZE)];
    for (let i = 0; i < WINDOW; i++) real[i] = hann[i] * (samples[frame * hop + i] ?? 0);
    transform(real, imaginary);
    return Float64Array.from({length: FFT_SIZE / 2}, (_, bin) => 10 * Math.log10(real[bin] ** 2 + imaginary[bin] ** 2 + 1e-12));
  });
}
/** The three numbers of a colour "#rrggbb" of the style. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1).match(/../g)
  .map((digits) => parseInt(digits, 16));

function drawSpectrogram(canvas, samples) {
  const frames = spectrogram(samples);
  [canvas.width, canvas.height] = [frames.length, FFT_SIZE / 2];
  const loudest = frames.reduce((most, frame) => Math.max(most, ...frame), -Infinity);
  const [paper, ink] = [colour("--raised"), colour("--ink")];
  const image = new ImageData(canvas.width, canvas.height);
  frames.forEach((frame, x) => frame.forEach((power, bin) => {
    const level = Math.max(0, 1 + (power - loudest) / RANGE_DB);
    const start = 4 * (x + (canvas.height - 1 - bin) * canvas.width);
    image.data.set([...paper.map((from, i) => from + (ink[i] - from) * level), 255], start);
  }));
  canvas.getContext("2d").putImageData(image, 0, 0);
}
function drawWaveform(canvas, samples) {
  [canvas.width, canvas.height] = [900, 120];
  const pen = canvas.getContext("2d");
  pen.fillStyle = `rgb(${colour("--accent")})`;
  const loudest = samples.reduce((most, sample) => Math.max(most, Math.abs(sample)), 1e-4);
  const step = samples.length / canvas.width;
  for (let x = 0; x < canvas.width; x++) {
    const part = samples.subarray(Math.floor(x * step), Math.max(Math.floor(x * step) + 1, Math.floor((x + 1) * step)));
    const [low, high] = [Math.min(...part) / loudest, Math.max(...part) / loudest];
    pen.fillRect(x, (1 - high) * 60, 1, Math.max(1, (high - low) * 60));
  }
}

const source = (utterance) => (page.audio === "embedded" ? `data:audio/mpeg;base64,${utterance.audio}` : utterance.audio);
/** The samples, one channel of RATE. */
async function samplesOf(utterance) {
  const bytes = page.audio === "embedded" ? Uint8Array.from(atob(utterance.audio), (byte) => byte.charCodeAt(0)).buffer
    : await (await fetch(utterance.audio)).arrayBuffer();
  return (await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes)).getChannelData(0);
}
/** Draw waveform and spectrogram into `place`; a click seeks, a line follows `player`. */
async function drawSound(utterance, player, place) {
  if (page.audio === "linked" && location.protocol === "file:") {
    place.append(make("small", null, "A browser draws linked audio only where the page comes from a server."));
    return;
  }
  let samples;
  try {
    samples = await samplesOf(utterance);
  } catch { // the player says so
    return;
  }
  const about = `of utterance ${utterance.number}, ${utterance.duration.toFixed(1)} s`;
  const [wave, spectrum] = ["Waveform", "Spectrogram"].map((kind) => make("canvas", {role: "img", "aria-label": `${kind} ${about}`}));
  const line = make("i");
  const drawing = make("div", {class: "drawing"}, wave, spectrum, line);
  place.append(drawing, make("small", {class: "scale"}, make("span", null, "0 s"),
    make("span", null, `spectrogram: 0 to ${RATE / 2000} kHz, ${RANGE_DB} dB`), make("span", null, `${(samples.length / RATE).toFixed(2)} s`)));
  drawWaveform(wave, samples);
  drawSpectrogram(spectrum, samples);
  drawing.addEventListener("click", (event) => {
    const box = drawing.getBoundingClientRect();
    player.currentTime = ((event.clientX - box.left) / box.width) * player.duration || 0;
  });
  const follow = () => {
    line.style.left = `${(100 * player.currentTime) / (player.duration || 1)}%`;
    if (!player.paused && player.isConnected) requestAnimationFrame(follow);
  };
  for (const event of ["play", "seeked", "pause"]) player.addEventListener(event, follow);
  follow();
}
/** A button that says how long the audio is; pressed, it becomes the player with the drawings below the header. */
function playButton(utterance) {
  if (!utterance.audio) return make("small", null, `${utterance.file} cannot be played`);
  const button = make("button", {type: "button", class: "play", "aria-label":
    `Play utterance ${utterance.number}, ${utterance.duration.toFixed(1)} seconds`}, `▶ ${utterance.duration.toFixed(1)} s`);
  button.addEventListener("click", () => {
    const player = make("audio", {controls: true, src: source(utterance), "aria-label": `Utterance ${utterance.number}`});
    const place = make("div", {class: "sound"});
    button.closest("header").after(place);
    button.replaceWith(player);
    player.focus();
    player.play().catch(() => {}); // the error event says why
    drawSound(utterance, player, place);
  });
  return button;
}
