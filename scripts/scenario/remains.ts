import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { processesNaming } from '../lib/processes-naming.ts';
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
