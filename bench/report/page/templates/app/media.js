// @ts-check
// Clips as the page stores them, one picture with all frames or video files, and one clock for all that run together.
"use strict";

{
  const { make, part } = report;
  const clips = report.readIsland("clips") ?? { kind: null };
  const { fps, frames, width, height } = clips;
  const base = report.readIsland("suite")?.rows.find((row) => row.base)?.label;
  const atlases = new Map();

  /** `{src, sha256, line}` of a clip, `line` only in a picture; null if it is not stored. The base has no seed. */
  report.find = ({ row, seed, prompt, video }) => {
    const set = clips.kind && clips.sets[row]?.[row === base ? "" : seed];
    const key = `${prompt}-${video}`;
    if (clips.kind === "mp4") return set?.files[key] ?? null;
    return set && key in set.lines ? { src: set.src, sha256: set.sha256, line: set.lines[key] } : null;
  };

  const loadImage = async (/** @type {string} */ src) => {
    const image = make("img", { src });
    await image.decode();
    return image;
  };
  const loadVideo = async (/** @type {string} */ src) => {
    const video = make("video", { muted: true, playsInline: true, preload: "auto", src });
    await new Promise((done, fail) => Object.assign(video, { onloadeddata: done, onerror: () => fail(video.error) }));
    return video;
  };
  /** Set a video to the middle of a frame. */
  const seek = (/** @type {HTMLVideoElement} */ video, /** @type {number} */ frame) => {
    video.currentTime = (frame + 0.5) / fps;
    return new Promise((done) => video.addEventListener("seeked", done, { once: true }));
  };
  /** Let a playing video follow the clock: 5 % faster or slower beyond half a frame, set anew beyond two frames. */
  const follow = (/** @type {HTMLVideoElement} */ video, /** @type {Clock} */ clock) => {
    const late = clock.position - video.currentTime * fps;
    if (Math.abs(late) > 2 && !video.seeking) video.currentTime = clock.position / fps;
    video.playbackRate = clock.speed * (Math.abs(late) > 0.5 ? 1 + 0.05 * Math.sign(late) : 1);
    if (video.paused) video.play().catch((error) => {
      if (error.name !== "AbortError") throw error; // a pause before the first frame
    });
  };

  /** Load a clip; `exact` decodes all frames of a file. @returns {Promise<{draw: Function, close: () => void}>} */
  async function open(stored, /** @type {Clock} */ clock, /** @type {boolean} */ exact) {
    if (clips.kind === "atlas") {
      if (!atlases.has(stored.src)) atlases.set(stored.src, loadImage(stored.src));
      const image = await atlases.get(stored.src);
      const place = () => [clock.frame * width, stored.line * height, width, height];
      return { draw: (context) => context.drawImage(image, ...place(), 0, 0, width, height), close() {} };
    }
    const video = await loadVideo(stored.src);
    const draw = async (context) => {
      if (clock.playing) follow(video, clock);
      else video.pause(), await seek(video, clock.frame);
      context.drawImage(video, 0, 0, width, height);
    };
    if (!exact) return { draw, close: () => video.pause() };
    const pictures = [];
    for (let frame = 0; frame < frames; frame++) {
      await seek(video, frame);
      pictures.push(await createImageBitmap(video));
    }
    const close = () => pictures.forEach((picture) => picture.close());
    return { draw: (context) => context.drawImage(pictures[clock.frame], 0, 0, width, height), close };
  }

  /** A canvas that shows a stored clip at the frame of its clock. */
  report.Screen = class Screen {
    constructor(stored, /** @type {Clock} */ clock, exact = false) {
      this.canvas = make("canvas", { width, height });
      this.element = make("span", { className: "screen" }, this.canvas);
      /** @type {ReturnType<typeof open> | undefined} */
      this.source = undefined;
      this.load = () => (this.source ??= open(stored, clock, exact));
    }
    /** Draw the frame, and load the clip first if need be; false if it cannot be read. */
    async draw() {
      const source = await this.load().catch(() => null);
      if (!source) this.element.textContent = "This video cannot be read. Was its file sent with the page?";
      await source?.draw(this.canvas.getContext("2d"));
      return source !== null;
    }
    /** Stop, and free the frames; a clip that cannot be read has none. */
    close() {
      this.source?.then((source) => source.close(), () => {});
    }
  };

  /** Frame, speed and buttons of the screens that run together; it stands until the reader starts it. */
  class Clock {
    constructor(/** @type {() => void} */ changed) {
      this.position = 0; // in frames, with a fraction while it plays
      this.timer = 0;
      this.bar = part("bar");
      this.show = () => {
        this.bar.play.textContent = this.playing ? "Pause" : "Play";
        this.bar.scrub.value = this.frame;
        this.bar.place.textContent = `${this.frame + 1} / ${frames}`;
        changed();
      };
      this.bar.scrub.max = frames - 1;
      this.bar.scrub.oninput = () => this.step(this.bar.scrub.value - this.frame);
      this.bar.play.onclick = () => (this.playing ? this.step(0) : this.play());
      this.bar.back.onclick = () => this.step(-1);
      this.bar.on.onclick = () => this.step(1);
    }
    get playing() { return this.timer !== 0; }
    get frame() { return Math.floor(this.position); }
    get speed() { return Number(this.bar.speed.value); }
    /** Stop, and go some frames on or back. */
    step(/** @type {number} */ count) {
      cancelAnimationFrame(this.timer);
      this.timer = 0;
      this.position = (this.frame + count + frames) % frames;
      this.show();
    }
    play() {
      let last = performance.now();
      const tick = (/** @type {number} */ now) => {
        this.timer = requestAnimationFrame(tick);
        const before = this.frame;
        this.position = (this.position + (Math.max(0, now - last) / 1000) * fps * this.speed) % frames;
        last = now;
        if (this.frame !== before) this.show();
      };
      this.timer ||= requestAnimationFrame(tick);
      this.show();
    }
  }
  report.Clock = Clock;
}
