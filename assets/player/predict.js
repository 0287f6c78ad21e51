// Closed forms: what a policy stores and reads, known from the prompt's size alone, before any run.

function shareOf(percent, n) {
  // ceil(x * N / 100), guarded against 0.1 + 0.2 style excess
  return Math.ceil(percent * n / 100 - 1e-9);
}

// entries of one row in all layers after / read by decode step t
function predictStep(policy, size, t) {
  const { layers, n_image: nImage, n_text: nText, limit } = size;
  const full = nImage + nText + t;
  let stored = 0, read = 0;
  for (let layer = 0; layer < layers; layer++) {
    if (policy.policy === "AVL") {
      const present = layer >= 2 && policy.P ? Math.min(nImage, shareOf(policy.P, nImage)) : nImage;
      const image = Math.min(shareOf(policy.S, nImage), present);
      const core = policy.C && policy.C < policy.S ? Math.min(shareOf(policy.C, nImage), image) : image;
      const window_ = policy.T ? shareOf(policy.T, nText + limit) : Infinity;
      stored += image + Math.min(nText + t, window_);
      // the new token's entry is read beside a full window before the window gives one up
      read += (t % policy.K === 0 ? image : core) + Math.min(nText + t, window_ + 1);
    } else if (policy.policy === "H2O" || policy.policy === "StreamingLLM") {
      const window_ = shareOf(policy.keep, nImage + nText);
      stored += Math.min(full, window_);
      read += Math.min(full, window_ + 1);
    } else if (policy.policy === "FastV") {
      const image = layer >= policy.layer ? Math.min(nImage, shareOf(policy.keep, nImage)) : nImage;
      stored += image + nText + t;
      read += image + nText + t;
    } else {
      stored += full;
      read += full;
    }
  }
  return { stored, read, full: full * layers };
}

// means over decode steps 1 .. steps, as shares of the full cache and in bytes of all rows
function predict(policy, size, steps) {
  let stored = 0, read = 0, full = 0;
  const count = Math.max(1, steps);
  for (let t = 1; t <= count; t++) {
    const step = predictStep(policy, size, t);
    stored += step.stored;
    read += step.read;
    full += step.full;
  }
  const bytes = size.token_bytes / size.layers * (size.batch || 1) / count;
  return { stored: stored / full, read: read / full, storedBytes: stored * bytes, readBytes: read * bytes, fullBytes: full * bytes };
}
