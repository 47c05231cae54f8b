import { open, statfs, unlink } from 'node:fs/promises';
import { makeDirectory } from '../../shared/durable-file.ts';
import { AppError, errorCode } from '../../shared/errors.ts';
import { partPath } from './image-file.ts';

/** Room that is left free beside the images: other programs need the disk too. */
const SPARE_BYTES = 200 * 1024 ** 2;
/** No estimate is exact, and others write to the same disk meanwhile. */
const MARGIN = 3;

/** Why nothing can be saved in a directory: a sentence without the next step, which depends on who asked. */
export type RoomProblem = { code: 'DISK_FULL' | 'PATH_DENIED'; what: string; cause?: unknown };

/** What must be free before work is asked for that makes so much. */
export function withMargin(bytes: number): number {
  return MARGIN * bytes + SPARE_BYTES;
}

/** Tries what a save does: makes the directory and a file in it, and looks at the space. Leaves nothing behind. */
export async function roomProblem(directory: string, neededBytes: number): Promise<RoomProblem | undefined> {
  const probe = partPath(directory);
  try {
    await makeDirectory(directory); // what is saved there later finds it there, and syncs no name above it
    await (await open(probe, 'wx')).close();
    await unlink(probe);
  } catch (error) {
    const code = errorCode(error) ?? String(error);
    if (code === 'ENOSPC' || code === 'EDQUOT') return tooFull(directory, { freeBytes: 0, neededBytes, cause: error });
    return { code: 'PATH_DENIED', what: `${directory} cannot be written (${code}).`, cause: error };
  }
  const freeBytes = await freeBytesIn(directory);
  return freeBytes < neededBytes ? tooFull(directory, { freeBytes, neededBytes }) : undefined;
}

/** Proves that images can be saved here, before a GPU works for them. */
export async function checkWritable(directory: string, { needBytes }: { needBytes: number }): Promise<void> {
  const problem = await roomProblem(directory, withMargin(needBytes));
  if (problem === undefined) return;
  const next =
    problem.code === 'DISK_FULL'
      ? 'Nothing was generated. Free some space, ask for fewer images, or choose another output_dir.'
      : 'Nothing was generated. Choose another output_dir, or change its permissions.';
  throw new AppError(problem.code, `${problem.what} ${next}`, { cause: problem.cause });
}

/** `No space is left in DIRECTORY: ...`, after a write there was refused. */
export async function noSpaceLeft(directory: string, neededBytes: number): Promise<string> {
  const freeBytes = await freeBytesIn(directory).catch(() => 0); // it was refused: as good as nothing
  return tooFull(directory, { freeBytes, neededBytes }).what;
}

async function freeBytesIn(directory: string): Promise<number> {
  const { bavail, bsize } = await statfs(directory);
  return bavail * bsize;
}

function tooFull(directory: string, o: { freeBytes: number; neededBytes: number; cause?: unknown }): RoomProblem {
  const what = `Too little space is left in ${directory}: ${mib(o.freeBytes)} free, ${mib(o.neededBytes)} needed.`;
  return { code: 'DISK_FULL', what, cause: o.cause };
}

/** One decimal below ten, so that a small image is not 0 MiB. */
function mib(bytes: number): string {
  const value = bytes / 1024 ** 2;
  return `${value < 10 ? Math.ceil(value * 10) / 10 : Math.round(value)} MiB`;
}
