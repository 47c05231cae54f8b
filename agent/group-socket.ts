import { chmodSync, existsSync, rmSync } from 'node:fs';
import { once } from 'node:events';
import type { Server, Socket } from 'node:net';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { socketPath } from '../shared/agent-socket.ts';

/**
 * A second door to the agent, for commands of its group: `/run/NAME/agent.sock`, where systemd made that directory for the
 * unit. The state directory itself is closed to everybody else. It elects nobody: only who holds the state directory opens it.
 */
export class GroupSocket implements AsyncDisposable {
  readonly #server: Server;

  private constructor(serve: (socket: Socket) => void) {
    this.#server = createServer((socket) => {
      socket.on('error', () => socket.destroy()); // whoever asked has gone
      socket.write(`pid ${process.pid}\n`);
      serve(socket);
    });
  }

  static async open(path: string, serve: (socket: Socket) => void): Promise<GroupSocket> {
    rmSync(path, { force: true }); // of an agent that died: a living one would hold the state directory
    const door = new GroupSocket(serve);
    door.#server.listen(path);
    if (door.#server.listening) chmodSync(path, 0o660); // in the same moment: bound it is already
    await once(door.#server, 'listening');
    return door;
  }

  /** Closing the server also removes the file. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.#server.listening) return;
    this.#server.close();
    await once(this.#server, 'close');
  }
}

/** What systemd called after the same unit as `/var/lib/NAME`; undefined for any other state directory. */
export function unitDirectory(stateDir: string, kind: 'cache' | 'run'): string | undefined {
  const [, name] = /^\/var\/lib\/([^/]+)$/.exec(stateDir) ?? [];
  if (name === undefined) return undefined;
  return join(kind === 'run' ? '/run' : '/var/cache', name);
}

/** Where the door of the group is, if there is such a place on this host. */
export function groupSocketPath(stateDir: string): string | undefined {
  const directory = unitDirectory(stateDir, 'run');
  return directory !== undefined && existsSync(directory) ? join(directory, 'agent.sock') : undefined;
}

/** Where a command finds the agent. */
export function commandSocketPath(stateDir: string): string {
  const door = groupSocketPath(stateDir);
  return door !== undefined && existsSync(door) ? door : socketPath(stateDir);
}
