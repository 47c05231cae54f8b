import { execa } from 'execa';

export type Ran = { code: number; stdout: string; stderr: string };

/** The judge could not be had: without a network this is all that is known. */
export class NotRun extends Error {}

const CODE_OF_NPM = /npm (?:error|ERR!) code (E[A-Z_]+)/;
/** What npm says when it is not the package that fails. */
const DOWNLOAD_MS = 300_000;

/** Runs a program of a package from the registry. Throws NotRun where npm could not fetch it. */
export async function npx(
  packages: readonly string[],
  command: readonly string[],
  { timeoutMs = DOWNLOAD_MS, env = {} }: { timeoutMs?: number; env?: Record<string, string> } = {},
): Promise<Ran> {
  const named = packages.flatMap((name) => ['-p', name]);
  return await npm('npx', ['-y', ...named, ...command], { timeoutMs, env });
}

/** Installs packages into a directory of their own. */
export async function install(packages: readonly string[], directory: string): Promise<void> {
  const args = ['install', '--prefix', directory, '--no-save', '--no-audit', '--no-fund', ...packages];
  const { code, stderr } = await npm('npm', args, { timeoutMs: DOWNLOAD_MS, env: {} });
  if (code !== 0) throw new Error(stderr.trim().slice(-400));
}

async function npm(
  program: string,
  args: readonly string[],
  { timeoutMs, env }: { timeoutMs: number; env: Record<string, string> },
): Promise<Ran> {
  const result = await execa(program, args, {
    reject: false,
    timeout: timeoutMs,
    stdin: 'ignore',
    env: { NPM_CONFIG_LOGLEVEL: 'error', NPM_CONFIG_FETCH_RETRIES: '1', ...env },
  });
  const { stdout } = result;
  // npm's own talk about the settings of whoever runs it.
  const stderr = result.stderr.replace(/^npm warn .*\n?/gm, '');
  const [, cause] = CODE_OF_NPM.exec(stderr) ?? [];
  if (cause !== undefined) throw new NotRun(`npm could not fetch it (${cause})`);
  if (result.timedOut) throw new Error(`no end after ${Math.round(timeoutMs / 1000)} s`);
  if (result.exitCode === undefined) throw new NotRun(`${program} cannot be started: ${result.shortMessage ?? ''}`);
  return { code: result.exitCode, stdout, stderr };
}
