import { basename, delimiter, dirname, isAbsolute } from 'node:path';
import readXmlInventory from 'node-nvidia-smi';
import { SmiLog } from './smi-xml.ts';

/**
 * The full inventory by node-nvidia-smi. It has no time limit and gives no handle of its child: the caller races the
 * promise, and counts the child as hanging until it settles.
 */
export function readInventory(nvidiaSmi: string): Promise<SmiLog> {
  if (basename(nvidiaSmi) !== 'nvidia-smi') {
    // The package runs the command of this very name, so another one cannot be read through it.
    return Promise.reject(new Error(`${nvidiaSmi} is not named nvidia-smi`));
  }
  return withInPath(nvidiaSmi, () => {
    return new Promise((resolve, reject) => {
      readXmlInventory((error, inventory) => {
        const parsed = SmiLog.safeParse(inventory);
        if (parsed.success) resolve(parsed.data);
        // It also passes on what was printed on stderr, as a string.
        else
          reject(error instanceof Error ? error : new Error(typeof error === 'string' ? error : parsed.error.message));
      });
    });
  });
}

/**
 * The package finds nvidia-smi by the PATH of this process, and forks before `run` returns. So a configured one comes
 * first in the PATH for that moment, and for nobody else.
 */
function withInPath<T>(nvidiaSmi: string, run: () => T): T {
  if (!isAbsolute(nvidiaSmi)) return run();
  /* eslint-disable no-restricted-properties -- not configuration: the only way to tell the package which one to run */
  const path = process.env.PATH;
  process.env.PATH = [dirname(nvidiaSmi), path].filter((part) => part !== undefined).join(delimiter);
  try {
    return run();
  } finally {
    if (path === undefined) delete process.env.PATH;
    else process.env.PATH = path;
  }
  /* eslint-enable no-restricted-properties */
}
