import { createHash, randomBytes } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  openSync,
  closeSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';

export const HUB_FAULTS = [
  'gated',
  'denied',
  'missing',
  'no-revision',
  'offline',
  'disk-full',
  'stall',
  'crash',
] as const;
export type HubFault = (typeof HUB_FAULTS)[number];

type PlannedFile = { name: string; bytes: number; blob: string; partial: string; isThere: boolean };
export type HubPlan = { snapshot: string; refPath: string | undefined; commit: string; files: readonly PlannedFile[] };

const MIB = 1024 ** 2;
const STEP_MS = 20;
const FILES = 2;
const COMMIT = /^[0-9a-f]{40}$/;

/** Which files a repository has at this revision, and where each will lie. Equal names make equal files. */
export function plan(o: {
  cacheDir: string;
  repository: string;
  revision: string;
  mib: number;
  isOld: boolean;
}): HubPlan {
  const directory = join(o.cacheDir, `models--${o.repository.replaceAll('/', '--')}`);
  const commit = COMMIT.test(o.revision) ? o.revision : hash(`${o.repository}@${o.revision}`).slice(0, 40);
  const snapshot = join(directory, 'snapshots', commit);
  const sizes = Array.from({ length: FILES }, () => Math.round((o.mib * MIB) / FILES));
  const named = [
    { name: 'model_index.json', bytes: 70 },
    ...sizes.map((bytes, at) => ({ name: `transformer/model-${at + 1}.safetensors`, bytes })),
  ];
  const files = named.map(({ name, bytes }) => {
    const blob = join(directory, 'blobs', hash(`${commit} ${name} ${bytes}`));
    // The new one never goes on with a part: each has a name of its own.
    const partial = o.isOld ? `${blob}.incomplete` : `${blob}.${randomBytes(4).toString('hex')}.incomplete`;
    return { name, bytes, blob, partial, isThere: existsSync(join(snapshot, name)) };
  });
  return {
    snapshot,
    commit,
    files,
    refPath: COMMIT.test(o.revision) ? undefined : join(directory, 'refs', o.revision),
  };
}

/** Writes what is missing, all files at the same time. Returns what the program says where it fails. */
export async function fetchSnapshot(
  { snapshot, refPath, commit, files }: HubPlan,
  o: { bytesPerSecond: number; fault: HubFault | undefined },
): Promise<string | undefined> {
  mkdirSync(snapshot, { recursive: true });
  if (refPath !== undefined) {
    mkdirSync(dirname(refPath), { recursive: true });
    writeFileSync(refPath, commit);
  }
  const open = files
    .filter(({ isThere }) => !isThere)
    .map((file) => {
      mkdirSync(dirname(file.blob), { recursive: true });
      return { ...file, fd: openSync(file.partial, 'a'), done: statSync(file.partial).size };
    });
  let left = open;
  let written = 0;
  const half = open.reduce((sum, { bytes, done }) => sum + bytes - done, 0) / 2;
  while (left.length > 0) {
    const share = Math.max(1, Math.round((o.bytesPerSecond * STEP_MS) / 1000 / left.length));
    for (const file of left) {
      const bytes = Math.min(share, file.bytes - file.done);
      writeSync(file.fd, Buffer.alloc(bytes, 7));
      file.done += bytes;
      written += bytes;
      if (file.done >= file.bytes) finish(file, snapshot);
    }
    left = left.filter(({ done, bytes }) => done < bytes);
    if (written >= half && left.length > 0) {
      if (o.fault === 'disk-full') return 'OSError: [Errno 28] No space left on device';
      if (o.fault === 'crash') process.kill(process.pid, 'SIGKILL');
      if (o.fault === 'stall') await delay(2 ** 30);
    }
    await delay(STEP_MS);
  }
  return undefined;
}

function finish(file: PlannedFile & { fd: number }, snapshot: string): void {
  closeSync(file.fd);
  renameSync(file.partial, file.blob);
  const link = join(snapshot, file.name);
  mkdirSync(dirname(link), { recursive: true });
  rmSync(link, { force: true }); // what it led to was removed by hand
  symlinkSync(relative(dirname(link), file.blob), link);
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}
