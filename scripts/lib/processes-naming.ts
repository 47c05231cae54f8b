import { readdir, readFile } from 'node:fs/promises';

/** Processes that name this directory in their command line, or in the environment that children inherit. */
export async function processesNaming(directory: string): Promise<{ pid: number; words: string[] }[]> {
  const pids = (await readdir('/proc')).filter((name) => /^\d+$/.test(name)).map(Number);
  const found = await Promise.all(
    pids.map(async (pid) => {
      const [line, environment] = await Promise.all(
        ['cmdline', 'environ'].map((name) => readFile(`/proc/${pid}/${name}`, 'latin1').catch(() => '')), // ended, or not ours to read
      );
      const isOurs = [line, environment].some((text) => text?.includes(directory));
      return isOurs ? [{ pid, words: (line ?? '').split('\0') }] : [];
    }),
  );
  return found.flat();
}
