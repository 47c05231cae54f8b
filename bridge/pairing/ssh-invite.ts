import { execa } from 'execa';
import { connect, createServer } from 'node:net';
import { once } from 'node:events';
import type { z } from 'zod';
import { Deadline, pause } from '../../shared/abort.ts';
import { AppError } from '../../shared/errors.ts';
import { EXIT } from '../../shared/exit-codes.ts';
import { HOST_REQUESTS } from '../../shared/protocol.ts';
import { parseJson } from '../fleet/link-errors.ts';

const Invited = HOST_REQUESTS['invite.create'].result;
export type Invited = z.infer<typeof Invited>;

const TUNNEL_MS = 20_000;
const LOOK_EVERY_MS = 50;
const INVITE = ['gantry-agent', 'invite', '--json'];
/** ssh's own failures; anything else is the exit code of the command over there. */
const SSH_FAILED = 255;
const NO_COMMAND = 127;

/** Runs `gantry-agent invite` on the host, through whatever trust ssh has there. ssh may ask the person for a password. */
export async function inviteOverSsh(target: string): Promise<Invited> {
  refuseOption(target);
  let answer = await remote(target, INVITE);
  if (answer.exitCode === EXIT.denied) answer = await remote(target, ['sudo', '-n', '-u', 'gantry', ...INVITE]);
  const invited = Invited.safeParse(answer.exitCode === 0 ? parseJson(answer.stdout) : undefined);
  if (invited.success) return invited.data;
  throw new AppError('AGENT_UNREACHABLE', `${whyNot(target, answer.exitCode)}`);
}

/** A port of this machine that leads to one of the host, for as long as this lives. */
export class SshTunnel implements AsyncDisposable {
  readonly port: number;
  /** What a person types to have it. */
  readonly command: string;
  readonly #child: ReturnType<typeof spawnTunnel>;

  private constructor(port: number, command: string, child: ReturnType<typeof spawnTunnel>) {
    this.port = port;
    this.command = command;
    this.#child = child;
  }

  /** `ports` are tried in this order; 0 is any free one. */
  static async open(
    target: string,
    o: { to: string; ports: readonly number[]; signal: AbortSignal },
  ): Promise<SshTunnel> {
    refuseOption(target);
    const port = await freePort(o.ports);
    const child = spawnTunnel(target, { port, to: o.to });
    const tunnel = new SshTunnel(port, `ssh -N -L ${port}:${o.to} ${target}`, child);
    let hasEnded = false;
    void child.finally(() => (hasEnded = true)); // reject: false, so it only resolves
    using patience = new Deadline({ ms: TUNNEL_MS, signal: o.signal });
    while (!(await answers(port))) {
      if (hasEnded || patience.signal.aborted) {
        await tunnel[Symbol.asyncDispose]();
        o.signal.throwIfAborted();
        throw new AppError(
          'AGENT_UNREACHABLE',
          `ssh made no tunnel to ${o.to} of ${target}. Try it by hand: ${tunnel.command}`,
        );
      }
      await pause(LOOK_EVERY_MS, patience.signal);
    }
    return tunnel;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill('SIGTERM');
    await this.#child;
  }
}

function spawnTunnel(target: string, { port, to }: { port: number; to: string }) {
  const forward = ['-o', 'ExitOnForwardFailure=yes', '-L', `127.0.0.1:${port}:${to}`];
  return execa('ssh', ['-N', ...forward, '--', target], {
    stdio: ['inherit', 'ignore', 'inherit'],
    reject: false,
    forceKillAfterDelay: 5_000,
  });
}

async function remote(target: string, command: readonly string[]): Promise<{ exitCode: number; stdout: string }> {
  const answer = await execa('ssh', ['--', target, ...command], {
    stdio: ['inherit', 'pipe', 'inherit'],
    reject: false,
    maxBuffer: 64 * 1024,
  });
  if (answer.code === 'ENOENT') {
    throw new AppError(
      'AGENT_UNREACHABLE',
      'There is no ssh on this machine. Run `gantry-agent invite` on the host and add its line.',
    );
  }
  return { exitCode: answer.exitCode ?? SSH_FAILED, stdout: answer.stdout };
}

function whyNot(target: string, exitCode: number): string {
  switch (exitCode) {
    case SSH_FAILED:
      return `ssh has no connection to ${target}. Try: ssh ${target} true`;
    case NO_COMMAND:
      return `There is no gantry-agent in the PATH of ${target}. Install it there first (docs/install.md).`;
    case EXIT.unavailable:
      return `No gantry-agent runs on ${target}. Start it there: sudo systemctl start gantry-agent`;
    case EXIT.denied:
      return `On ${target} you may not ask the agent for an invite. Run there: sudo -u gantry gantry-agent invite`;
    default:
      return `\`gantry-agent invite\` failed on ${target} (exit code ${exitCode}). Run it there and add its line.`;
  }
}

/** A name that ssh would take for an option runs programs of the caller's choice. */
function refuseOption(target: string): void {
  if (/^[A-Za-z0-9_][\w.@:/%[\]-]*$/.test(target)) return;
  throw new AppError('INVALID_ARGUMENT', `${JSON.stringify(target)} is not a destination of ssh like user@gpubox.`);
}

async function freePort(ports: readonly number[]): Promise<number> {
  for (const wanted of ports) {
    const server = createServer();
    try {
      await once(server.listen(wanted, '127.0.0.1'), 'listening');
    } catch {
      continue; // somebody has it
    }
    const address = server.address();
    server.close();
    await once(server, 'close');
    if (typeof address === 'object' && address !== null) return address.port;
  }
  throw new AppError('AGENT_UNREACHABLE', 'No port of this machine is free for a tunnel.');
}

async function answers(port: number): Promise<boolean> {
  const socket = connect(port, '127.0.0.1');
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
}
