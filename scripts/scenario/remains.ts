import { lstat, readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Ledger } from '../sim/lib/ledger.ts';

/** Everything of a simulated host that should be gone once its agent has ended; `except` are pids that are not its own. */
export async function remainsOf(directory: string, { except }: { except: readonly number[] }): Promise<string[]> {
  const processes = (await processesNaming(directory)).filter(
    ({ pid }) => !except.includes(pid) && pid !== process.pid,
  );
  const entries = new Ledger(join(directory, 'ledger')).entries();
  const held = entries.filter(({ pid, usedMiB }) => !except.includes(pid) && usedMiB > 0);
  return [
    ...processes.map(({ pid, words }) => `process ${pid}: ${words.slice(0, 3).join(' ')}`),
    ...held.map(({ pid, usedMiB }) => `ledger: ${usedMiB} MiB of pid ${pid}`),
    ...(await leftFiles(directory)),
  ];
}

/** Sockets, unfinished files, and results that were never acknowledged. */
async function leftFiles(directory: string): Promise<string[]> {
  const paths = await readdir(directory, { recursive: true });
  const left = await Promise.all(
    paths.map(async (path) => {
      const stat = await lstat(join(directory, path));
      if (stat.isSocket()) return [`socket ${path}`];
      if (!stat.isFile()) return [];
      if (/\.(part|tmp)$|\.tmp\b/.test(path)) return [`unfinished file ${path}`];
      return /(^|\/)results\//.test(path) ? [`result ${path}`] : [];
    }),
  );
  return left.flat();
}

/** By command line, or by the environment that its children inherit. */
async function processesNaming(directory: string): Promise<{ pid: number; words: string[] }[]> {
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
