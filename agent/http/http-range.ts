/** Which bytes of a file a request asks for, both ends included. */
export type ByteRange = { kind: 'whole' } | { kind: 'part'; start: number; end: number } | { kind: 'unsatisfiable' };

/**
 * PURE. Reads a Range header of one range; anything it does not understand, several ranges included, means the whole file,
 * which RFC 9110 allows.
 */
export function parseRange(header: string | undefined, bytes: number): ByteRange {
  const [, from, to] = /^bytes=(\d{0,15})-(\d{0,15})$/.exec(header ?? '') ?? [];
  if (from === undefined || to === undefined || (from === '' && to === '')) return { kind: 'whole' };
  if (from === '') {
    const start = Math.max(0, bytes - Number(to));
    return start < bytes ? { kind: 'part', start, end: bytes - 1 } : { kind: 'unsatisfiable' };
  }
  const start = Number(from);
  const end = to === '' ? bytes - 1 : Math.min(Number(to), bytes - 1);
  if (to !== '' && Number(to) < start) return { kind: 'whole' };
  return start < bytes ? { kind: 'part', start, end } : { kind: 'unsatisfiable' };
}
