/** A longer name is no typing error, and comparing it would take long. */
const MAX_LENGTH = 100;

/**
 * PURE. The valid name a person or a model most likely meant, or undefined when none is close: by edit distance, where a
 * name that is whole words of a valid one (`steps` of `num_inference_steps`) is nearly as close as one edit.
 */
export function nearest(name: string, candidates: Iterable<string>): string | undefined {
  if (name.length > MAX_LENGTH) return undefined;
  let best: { candidate: string; distance: number } | undefined;
  for (const candidate of candidates) {
    const distance = distanceOf(name, candidate);
    if (distance <= allowed(name, candidate) && (best === undefined || distance < best.distance))
      best = { candidate, distance };
  }
  return best?.candidate;
}

/** Above this two names have little in common: two fifths of the longer one. */
function allowed(name: string, candidate: string): number {
  return Math.max(1, Math.floor(Math.max(name.length, candidate.length) * 0.4));
}

function distanceOf(name: string, candidate: string): number {
  const [a, b] = [normal(name), normal(candidate)];
  if (a.length >= 3 && (`_${b}_`.includes(`_${a}_`) || `_${a}_`.includes(`_${b}_`)))
    return Math.min(editDistance(a, b), 1.5);
  return editDistance(a, b);
}

/** Case and the way words are joined are what people get wrong most: `numSteps`, `num-steps`, `num_steps`. */
function normal(name: string): string {
  return name
    .replace(/([a-z0-9])([A-Z])/g, '$1_$2')
    .replace(/[-\s.]/g, '_')
    .toLowerCase();
}

/** Levenshtein's, one row at a time. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const replaced = at(row, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, at(row, j) + 1, at(next, j - 1) + 1));
    }
    row = next;
  }
  return at(row, b.length);
}

function at(row: readonly number[], index: number): number {
  return row[index] ?? Infinity;
}
