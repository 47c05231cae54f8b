/** PURE. What is being done for a model and how far it is in time, for a person: "loading qwen, usually 74 s, 41 s so far". */
export function progressText(o: {
  doing: 'loading' | 'waking';
  alias: string;
  usualMs: number;
  /** The usual time was measured here, not guessed. */
  isMeasured: boolean;
  soFarMs: number;
}): string {
  const usual = o.isMeasured ? `usually ${seconds(o.usualMs)}` : `about ${seconds(o.usualMs)} expected`;
  const isLate = o.isMeasured && o.soFarMs > o.usualMs;
  const parts = [`${o.doing} ${o.alias}`, usual];
  if (o.soFarMs >= NOTHING_MS) parts.push(`${seconds(o.soFarMs)} so far${isLate ? ', longer than usual' : ''}`);
  return parts.join(', ');
}

/** How often that is worth saying again: some twenty times in the usual time, but neither all the time nor hardly ever. */
export function sayEveryMs(usualMs: number): number {
  return Math.min(MOST_MS, Math.max(LEAST_MS, usualMs / 20));
}

export function seconds(ms: number): string {
  return ms < 10_000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

const NOTHING_MS = 50;
const LEAST_MS = 100;
const MOST_MS = 3_000;
