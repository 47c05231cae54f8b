import { open, readdir, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { Uuid } from '../../shared/job.ts';
import { hasEnd, TAIL_BYTES } from './batch-index.ts';

/** Ended batches are remembered this long, and at most so many. */
export const REMEMBERED_MS = 30 * 24 * 3_600_000;
const REMEMBERED = 500;
/** And as long as their manifests take no more than this together: one of 10,000 jobs has some 25 MB. */
const MANIFEST_BYTES = 1024 ** 3;
/** A directory without a manifest is a call that was never answered; a younger one may be in the making. */
const UNANSWERED_MS = 24 * 3_600_000;
/** Previews of ended batches that are kept, the newest: at some 100 KB each about half a GB. */
const PREVIEWS = 5_000;

/**
 * Removes the directories of batches that ended long ago, or before the newest so many, and the previews of those that are
 * left beyond a number. The images are elsewhere and stay. Never an unfinished one, however old. Returns how many were removed.
 */
export async function removeOldBatches(
  root: string,
  o: {
    nowMs: number;
    keep?: number;
    previews?: number;
    bytes?: number;
    /** Whatever must outlive a batch is written down here; a batch for which that fails stays. */
    onRemoving?: ((batchId: string) => Promise<void>) | undefined;
  },
): Promise<number> {
  const names = await readdir(root).catch(() => []); // nothing was ever asked for
  const found = await Promise.all(names.filter((name) => Uuid.safeParse(name).success).map((id) => look(root, id)));
  const ended = found.filter(({ kind }) => kind === 'ended').sort((a, b) => b.changedMs - a.changedMs);
  const { keep = REMEMBERED, bytes = MANIFEST_BYTES } = o;
  let bytesSoFar = 0;
  const isTooMuch = ({ changedMs, size }: Found, rank: number): boolean => {
    bytesSoFar += size;
    return rank >= keep || o.nowMs - changedMs > REMEMBERED_MS || (rank > 0 && bytesSoFar > bytes);
  };
  const old = [
    ...found.filter(({ kind, changedMs }) => kind === 'unanswered' && o.nowMs - changedMs > UNANSWERED_MS),
    ...ended.filter(isTooMuch),
  ];
  for (const { id } of old) {
    await o.onRemoving?.(id);
    await rm(join(root, id), { recursive: true, force: true });
  }
  await removePreviews(
    root,
    ended.filter((one) => !old.includes(one)).map(({ id }) => id),
    o.previews ?? PREVIEWS,
  );
  return old.length;
}

/** `ids`: the newest first. */
async function removePreviews(root: string, ids: readonly string[], keep: number): Promise<void> {
  let left = keep;
  for (const id of ids) {
    const names = (await readdir(join(root, id)).catch(() => [])).filter((name) => /\.jpg(\.part)?$/.test(name));
    for (const name of names.slice(left)) await rm(join(root, id, name), { force: true });
    left = Math.max(0, left - names.length);
  }
}

type Found = { id: string; kind: 'ended' | 'unfinished' | 'unanswered'; changedMs: number; size: number };

async function look(root: string, id: string): Promise<Found> {
  const directory = join(root, id);
  const manifest = await open(join(directory, 'manifest.jsonl'), 'r').catch(() => undefined);
  if (manifest === undefined) {
    const changedMs = (await stat(directory).catch(() => undefined))?.mtimeMs ?? Number.POSITIVE_INFINITY;
    const names = await readdir(directory).catch(() => []); // removed meanwhile
    // Somebody may ask for a batch whose manifest was moved aside, because nothing of it could be read.
    const isKept = names.some((name) => name.includes('.corrupt-'));
    return { id, kind: isKept ? 'ended' : 'unanswered', changedMs, size: 0 };
  }
  try {
    const { size, mtimeMs } = await manifest.stat();
    const { buffer, bytesRead } = await manifest.read({
      buffer: Buffer.alloc(Math.min(size, TAIL_BYTES)),
      position: Math.max(0, size - TAIL_BYTES),
    });
    if (size === 0) return { id, kind: 'unanswered', changedMs: mtimeMs, size };
    const isEnded = hasEnd(buffer.toString('utf8', 0, bytesRead));
    return { id, kind: isEnded ? 'ended' : 'unfinished', changedMs: mtimeMs, size };
  } finally {
    await manifest.close();
  }
}
