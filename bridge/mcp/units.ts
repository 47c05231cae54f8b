/** PURE. At this edge the answers keep the units of the predecessors: seconds, and GB that are 1024 MiB. */
export function gb(mib: number): number {
  return Math.round((mib / 1024) * 100) / 100;
}

export function seconds(ms: number): number {
  return Math.round(ms / 10) / 100;
}

/** As `gb`, and nothing at all for a value the GPU does not report. */
export function knownGb(mib: number | null): number | undefined {
  return mib === null ? undefined : gb(mib);
}
