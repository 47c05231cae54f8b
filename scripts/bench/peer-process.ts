import type { ChildProcess } from 'node:child_process';
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { Deadline } from '../../shared/abort.ts';

const START_MS = 60_000;

/** The other end of many links, in a process of its own: what it costs is not counted with what is measured. */
export class PeerProcess implements AsyncDisposable {
  readonly #child: ChildProcess;

  private constructor(child: ChildProcess) {
    this.#child = child;
  }

  /** `program` is a file of this folder. Resolves with the first message that it sends. */
  static async start(
    program: string,
    args: readonly string[],
    { signal }: { signal: AbortSignal },
  ): Promise<{ peers: PeerProcess; ready: unknown }> {
    const peers = new PeerProcess(
      fork(fileURLToPath(new URL(program, import.meta.url)), args, { execArgv: ['--import', 'tsx'], signal }),
    );
    peers.#child.on('error', () => undefined); // its exit tells as much
    return { peers, ready: await peers.next() };
  }

  tell(message: string): void {
    this.#child.send(message);
  }

  /** Its next message; rejects when it ends without one. */
  async next(): Promise<unknown> {
    using deadline = new Deadline({ ms: START_MS });
    const { signal } = deadline;
    const gone = once(this.#child, 'exit', { signal }).then(() => {
      throw new Error(`${this.#child.spawnargs.join(' ')} ended`);
    });
    gone.catch(() => undefined); // the loser of the race
    const [message] = (await Promise.race([once(this.#child, 'message', { signal }), gone])) as [unknown]; // as documented
    return message;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exit = once(this.#child, 'exit');
    this.#child.kill('SIGKILL');
    await exit;
  }
}
