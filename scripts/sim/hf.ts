// The download command of huggingface_hub without a hub: `hf download REPOSITORY [--revision R] [--dry-run]`. Writes real,
// growing files into the cache of HF_HUB_CACHE or HF_HOME, in its layout: refs/, blobs/<hash> with <hash>.incomplete before,
// snapshots/<commit> with links. Ends and says what the real one ends with and says. Environment:
//   GANTRY_SIM_HF_MIB          size of the weights (default 8), in two files
//   GANTRY_SIM_HF_MIB_PER_S    rate (default 64)                      GANTRY_SIM_HF_VERSION     new (2.x) or old (0.36: no
//                                                                     --dry-run, partial files are gone on with)
//   GANTRY_SIM_HF_FAULT        gated | denied | missing | no-revision | offline | disk-full | stall | crash
//                              the last three in the middle
//   GANTRY_SIM_HF_FAULT_FILE   the fault happens only while this file exists
import { existsSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { HubFault } from './lib/hub-cache.ts';
import { fetchSnapshot, HUB_FAULTS, plan } from './lib/hub-cache.ts';

await main();

async function main(): Promise<void> {
  const { env } = process;
  const isOld = env['GANTRY_SIM_HF_VERSION'] === 'old';
  const { values, positionals } = options(isOld);
  const [command, repository] = positionals;
  if (command !== 'download' || repository === undefined) usage(`invalid choice: '${positionals.join(' ')}'`);
  const cacheDir = env['HF_HUB_CACHE'] ?? join(env['HF_HOME'] ?? join(homedir(), '.cache/huggingface'), 'hub');
  const fault = faultOf(env);
  const wanted = plan({
    ...{ cacheDir, repository, isOld, revision: values.revision ?? 'main' },
    mib: Number(env['GANTRY_SIM_HF_MIB'] ?? 8),
  });
  refuse(fault, { repository, isOld, isDry: values['dry-run'] === true });
  if (values['dry-run'] === true) {
    const missing = wanted.files.filter(({ isThere }) => !isThere);
    const size = humanSize(missing.reduce((sum, { bytes }) => sum + bytes, 0));
    process.stdout.write(
      `[dry-run] Will download ${missing.length} files (out of ${wanted.files.length}) totalling ${size}.\n`,
    );
    return;
  }
  if (fault === 'offline') {
    // The old one takes whatever is there for the whole, the new one looks whether a file is missing.
    const isWhole = wanted.files.every(({ isThere }) => isThere);
    if (existsSync(wanted.snapshot) && (isOld || isWhole)) return printPath(wanted.snapshot, isOld);
    end(
      isOld
        ? 'huggingface_hub.errors.LocalEntryNotFoundError: An error happened while trying to locate the files on the Hub and we cannot find the appropriate snapshot folder for the specified revision on the local disk. Please check your internet connection and try again.'
        : 'Error: Local entry not found. [Errno 111] Connection refused',
    );
  }
  const problem = await fetchSnapshot(wanted, {
    bytesPerSecond: Number(env['GANTRY_SIM_HF_MIB_PER_S'] ?? 64) * 1024 ** 2,
    fault,
  });
  if (problem !== undefined) end(problem);
  printPath(wanted.snapshot, isOld);
}

function options(isOld: boolean) {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        revision: { type: 'string' },
        quiet: { type: 'boolean' },
        ...(isOld ? {} : { 'dry-run': { type: 'boolean' as const } }),
      },
    });
  } catch {
    return usage(`unrecognized arguments: ${process.argv.slice(2).join(' ')}`);
  }
}

function faultOf(env: NodeJS.ProcessEnv): HubFault | undefined {
  const file = env['GANTRY_SIM_HF_FAULT_FILE'];
  if (file !== undefined && !existsSync(file)) return undefined;
  return HUB_FAULTS.find((fault) => fault === env['GANTRY_SIM_HF_FAULT']);
}

/** What the hub itself answers before a byte comes. A dry run ends with one sentence for all of them. */
function refuse(fault: HubFault | undefined, o: { repository: string; isOld: boolean; isDry: boolean }): void {
  const { repository, isOld } = o;
  const said: Partial<Record<HubFault, [before: string, now: string]>> = {
    gated: [
      `huggingface_hub.errors.GatedRepoError: 403 Client Error.\n\nCannot access gated repo for url https://huggingface.co/api/models/${repository}/revision/main.\nAccess to model ${repository} is restricted and you are not in the authorized list. Visit https://huggingface.co/${repository} to ask for access.`,
      `Error: Access denied. Model '${repository}' requires approval.`,
    ],
    denied: [
      'huggingface_hub.errors.HfHubHTTPError: 401 Client Error: Unauthorized for url: https://huggingface.co/api\n\nInvalid credentials in Authorization header',
      "Error: Client error '401 Unauthorized' for url 'https://huggingface.co/api'\n\nInvalid credentials in Authorization header",
    ],
    missing: [
      `huggingface_hub.errors.RepositoryNotFoundError: 404 Client Error.\n\nRepository Not Found for url: https://huggingface.co/api/models/${repository}/revision/main.`,
      `Error: Model '${repository}' not found.\nIf the repo is private, make sure you are authenticated and your token has the required permissions.`,
    ],
    'no-revision': [
      'huggingface_hub.errors.RevisionNotFoundError: 404 Client Error.\n\nRevision Not Found for url: https://huggingface.co/api.\nInvalid rev id: x',
      `Error: Revision not found in model '${repository}'.`,
    ],
  };
  const words = fault === undefined ? undefined : said[fault];
  if (words === undefined && !(fault === 'offline' && o.isDry)) return;
  if (o.isDry) {
    end(
      'huggingface_hub.errors.DryRunError: Dry run cannot be performed as the repository cannot be accessed. Please check your internet connection or authentication token.',
    );
  }
  end(words?.[isOld ? 0 : 1] ?? '');
}

function printPath(path: string, isOld: boolean): void {
  process.stdout.write(isOld ? `${path}\n` : `\u001b[32m✓ Downloaded\u001b[0m\n  path: ${path}\n`);
}

function humanSize(bytes: number): string {
  let rest = bytes;
  for (const unit of ['', 'K', 'M', 'G', 'T']) {
    if (rest < 1000) return `${rest.toFixed(1)}${unit}`;
    rest /= 1000;
  }
  return `${rest.toFixed(1)}P`;
}

function usage(problem: string): never {
  process.stderr.write(`usage: hf <command> [<args>]\nhf: error: ${problem}\n`);
  process.exit(2);
}

function end(text: string): never {
  process.stderr.write(`${text}\n`);
  process.exit(1);
}
