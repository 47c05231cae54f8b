import { execa } from 'execa';
import { join, resolve } from 'node:path';
import type { SimulatedHost } from '../../scripts/lib/simulated-host.ts';

type Outcome = { exitCode: number | undefined; stdout: string; stderr: string };
type Run = { enter?: readonly string[]; env?: Readonly<Record<string, string>> };

/** A line of the host's agent that lets one laptop in. */
export async function inviteFrom(host: Pick<SimulatedHost, 'directory'>, ...flags: string[]): Promise<string> {
  const { stdout } = await agent(['invite', '--json', ...flags, '--config', join(host.directory, 'agent.yaml')]);
  const { line } = JSON.parse(stdout) as { line: string }; // what the command promises
  return line;
}

/** `gantry-agent`, as somebody on the host types it. */
export function agent(args: readonly string[], o: Run = {}): Promise<Outcome> {
  return run('gantry-agent.mjs', args, o);
}

/** `gantry`, as somebody on the laptop types it. */
export function gantry(args: readonly string[], o: Run = {}): Promise<Outcome> {
  return run('gantry.cjs', args, o);
}

async function run(program: string, args: readonly string[], { enter = [], env = {} }: Run): Promise<Outcome> {
  const [command = '', ...rest] = [...enter, process.execPath, resolve('dist', program), ...args];
  const ended = await execa(command, rest, { env: { NO_COLOR: '1', ...env }, stdin: 'ignore', reject: false });
  return { exitCode: ended.exitCode, stdout: ended.stdout, stderr: ended.stderr };
}
