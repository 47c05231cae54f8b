import { execa } from 'execa';
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { isAlive, processTree } from '../helpers/fleet.ts';

/** `gantry bridge` behind a client whose end can be chosen; nothing here ends the bridge but what is at its other end. */
export class StdioClient implements AsyncDisposable {
  readonly #child: ReturnType<typeof start>;
  readonly #answers = new Map<number, (result: unknown) => void>();
  #lastId = 0;

  private constructor(child: ReturnType<typeof start>) {
    this.#child = child;
    createInterface({ input: child.stdout }).on('line', (line) => {
      const { id, result } = JSON.parse(line) as { id?: number; result?: unknown }; // MCP: one JSON object a line
      if (id !== undefined) this.#answers.get(id)?.(result);
    });
  }

  /** With the bridge.yaml that is already in this home. */
  static async start(home: string): Promise<StdioClient> {
    const client = new StdioClient(start(home));
    const clientInfo = { name: 'gantry-test', version: '1.0.0' };
    await client.#request('initialize', { protocolVersion: '2025-11-25', capabilities: {}, clientInfo });
    client.#send({ method: 'notifications/initialized' });
    return client;
  }

  /** The JSON part of a tool's answer. */
  async ask(name: string, args: Record<string, unknown>): Promise<Record<string, unknown>> {
    const result = (await this.#request('tools/call', { name, arguments: args })) as { content: { text: string }[] }; // shape of a tool's answer
    const text = result.content[0]?.text ?? '';
    return JSON.parse(text.slice(text.indexOf('{'))) as Record<string, unknown>; // JSON.parse returns `any`
  }

  /** The end of its input, as when the client closes the pipe. */
  endInput(): void {
    this.#child.stdin.end();
  }

  /** The process that holds the other end of the bridge's input dies. */
  async kill(): Promise<void> {
    process.kill(await this.#pidOf('cat'), 'SIGKILL');
  }

  /** Of the bridge itself. */
  async bridgePid(): Promise<number> {
    return await this.#pidOf('node');
  }

  /** The exit code of the bridge, once it has ended. */
  async ended(): Promise<number | undefined> {
    return (await this.#child).exitCode;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#child.pid === undefined) return;
    for (const pid of await processTree(this.#child.pid)) if (await isAlive(pid)) process.kill(pid, 'SIGKILL');
    await this.#child;
  }

  async #pidOf(name: string): Promise<number> {
    for (const pid of await processTree(this.#child.pid ?? 0)) {
      if ((await readFile(`/proc/${pid}/comm`, 'utf8')).trim() === name) return pid;
    }
    throw new Error(`no ${name} runs`);
  }

  async #request(method: string, params: unknown): Promise<unknown> {
    const id = (this.#lastId += 1);
    const answer = new Promise<unknown>((resolve) => this.#answers.set(id, resolve));
    this.#send({ id, method, params });
    return await answer;
  }

  #send(message: Record<string, unknown>): void {
    this.#child.stdin.write(`${JSON.stringify({ jsonrpc: '2.0', ...message })}\n`);
  }
}

/** `cat` is the client's end of the pipe; the exit code of the shell is the bridge's. */
function start(home: string) {
  const line = 'cat | node "$1" bridge --config "$2"';
  return execa('sh', ['-c', line, 'sh', resolve('dist/gantry.cjs'), join(home, 'bridge.yaml')], {
    env: { PATH: process.env['PATH'] ?? '', HOME: home, XDG_STATE_HOME: join(home, '.local', 'state') },
    extendEnv: false,
    cwd: home,
    stdin: 'pipe',
    stdout: 'pipe',
    stderr: 'inherit',
    buffer: false,
    reject: false,
  });
}
