import { build } from 'esbuild';
import { execa } from 'execa';
import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, readdir, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { AlreadyRunning, SingleInstance } from '../../agent/single-instance.ts';
import { socketPath } from '../../shared/agent-socket.ts';

const MODULE = fileURLToPath(new URL('../../agent/single-instance.ts', import.meta.url));

let stateDir: string;
beforeEach(async () => {
  stateDir = await mkdtemp(join(tmpdir(), 'gantry-lock-'));
});
afterEach(() => rm(stateDir, { recursive: true, force: true }));

test('the second one is told who holds it; once released, it is free and nothing is left', async () => {
  const first = await SingleInstance.acquire(stateDir);
  await expect(SingleInstance.acquire(stateDir)).rejects.toThrow(`in use by another gantry-agent (pid ${process.pid})`);
  expect(await readdir(stateDir)).toEqual(['agent.sock', expect.stringMatching(/^s\.[0-9a-f]{8}$/)]);
  expect((await stat(socketPath(stateDir))).mode & 0o777).toBe(0o600);
  await first[Symbol.asyncDispose]();
  expect(await readdir(stateDir)).toEqual([]);
  await using _again = await SingleInstance.acquire(stateDir);
});

test('somebody who asked and stays connected does not keep it from being released', async () => {
  const first = await SingleInstance.acquire(stateDir);
  const asking = connect({ path: socketPath(stateDir), allowHalfOpen: true });
  await once(asking, 'data');
  await first[Symbol.asyncDispose]();
  asking.destroy();
});

test('a directory too deep for a socket is refused in words', async () => {
  await expect(SingleInstance.acquire(join(stateDir, 'x'.repeat(100)))).rejects.toThrow('Use a shorter state_dir.');
});

test('a directory is deep enough for all sockets or for none', async () => {
  const depth = 103 - Buffer.byteLength(socketPath(stateDir)) - 1;
  const deepest = join(stateDir, 'x'.repeat(depth));
  await using _lock = await SingleInstance.acquire(deepest);
  await expect(SingleInstance.acquire(deepest)).rejects.toThrow(AlreadyRunning);
  await expect(SingleInstance.acquire(`${deepest}x`)).rejects.toThrow('Use a shorter state_dir.');
});

describe('what others left', () => {
  test('a former release that was killed holds nothing', async () => {
    const script = `require('net').createServer().listen(${JSON.stringify(socketPath(stateDir))}, () => process.kill(process.pid, 'SIGKILL'))`;
    await execa('node', ['-e', script], { reject: false });
    expect(await readdir(stateDir)).toEqual(['agent.sock']);
    await holdsAndLeavesNothing();
  });

  test('neither does a start that broke off, a link to nowhere, or a plain file', async () => {
    await writeFile(join(stateDir, 's#00000000'), '');
    await symlink('s.ffffffff', join(stateDir, 's#00000001'));
    await writeFile(join(stateDir, 's.00000000'), '');
    await symlink('s.00000000', socketPath(stateDir));
    await holdsAndLeavesNothing();
    await writeFile(socketPath(stateDir), '');
    await holdsAndLeavesNothing();
  });

  test('a former release that lives holds it, and goes on doing so', async () => {
    const former = createServer((socket) => void socket.end('pid 7\n', () => socket.destroy()));
    await once(former.listen(socketPath(stateDir)), 'listening');
    for (let start = 1; start <= 2; start += 1) {
      await expect(SingleInstance.acquire(stateDir)).rejects.toThrow('(pid 7)');
      expect(await readdir(stateDir)).toEqual(['agent.sock']);
    }
    former.close();
    await once(former, 'close');
  });

  /** It holds although it is not told apart from one that works. */
  async function holdsAndLeavesNothing(): Promise<void> {
    const lock = await SingleInstance.acquire(stateDir);
    await expect(SingleInstance.acquire(stateDir)).rejects.toThrow(AlreadyRunning);
    expect(await readdir(stateDir)).toEqual(['agent.sock', expect.stringMatching(/^s\./)]);
    await lock[Symbol.asyncDispose]();
    expect(await readdir(stateDir)).toEqual([]);
  }
});

describe('several that start at once', () => {
  test('in one process, after a crash: exactly one gets it', async () => {
    await using crashed = await Contender.start(stateDir);
    expect(await crashed.told('try')).toBe('held');
    await crashed.kill();
    expect(await readdir(stateDir)).toHaveLength(2);
    for (let round = 1; round <= 5; round += 1) {
      const tries = await Promise.allSettled(Array.from({ length: 8 }, () => SingleInstance.acquire(stateDir)));
      const winners = tries.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []));
      const refusals = tries.flatMap((each) => (each.status === 'rejected' ? [each.reason as unknown] : []));
      for (const winner of winners) await winner[Symbol.asyncDispose]();
      expect(refusals.filter((reason) => !(reason instanceof AlreadyRunning))).toEqual([]);
      expect(winners).toHaveLength(1);
      expect(await readdir(stateDir)).toEqual([]);
    }
  });

  test('as processes, again and again after a holder was killed: exactly one holds', { timeout: 120_000 }, async () => {
    await using crowd = await Crowd.start(6, stateDir);
    for (let round = 1; round <= 20; round += 1) {
      const answers = await Promise.all(crowd.contenders.map((each) => each.told('try')));
      expect(answers.toSorted(), `round ${round}`).toEqual(['held', ...Array<string>(5).fill('refused')]);
      await crowd.replace(answers.indexOf('held'));
    }
  });

  test('as processes that come and go, some of them killed: never two', { timeout: 120_000 }, async () => {
    await using crowd = await Crowd.start(4, stateDir);
    for (let round = 1; round <= 3; round += 1) {
      const endings = crowd.contenders.map((each) => each.told('spin 30'));
      await Promise.race(endings);
      await crowd.replace(round);
      const others = endings.filter((_, index) => index !== round);
      for (const ending of await Promise.all(others)) expect(ending).toMatch(/^spun, held \d+$/);
    }
    await Promise.all(crowd.contenders.map((each) => each.told('spin 0')));
    await using _last = await SingleInstance.acquire(stateDir);
    expect(await readdir(stateDir)).toEqual(['agent.sock', expect.stringMatching(/^s\./)]);
  });
});

describe('one that hangs', () => {
  const SOON = { answerMs: 300 };

  test('holds it all the same, also when nobody else gets through to it', { timeout: 120_000 }, async () => {
    await using holder = await Contender.start(stateDir);
    expect(await holder.told('try')).toBe('held');
    holder.child.kill('SIGSTOP');
    await expect(SingleInstance.acquire(stateDir, SOON)).rejects.toThrow('(it does not answer)');
    if (process.platform === 'darwin') return; // which refuses the next one
    // As many as the kernel lets wait: the next is turned away, which is not the answer of a dead one.
    const crowd = Array.from({ length: 600 }, () => connect(socketPath(stateDir)).on('error', () => undefined));
    const closed = crowd.map((socket) => new Promise((resolve) => socket.once('close', resolve)));
    await Promise.race(closed);
    await expect(SingleInstance.acquire(stateDir, SOON)).rejects.toThrow('(it does not answer)');
    for (const socket of crowd) socket.destroy();
    await Promise.all(closed);
    await holder.kill();
    await using _lock = await SingleInstance.acquire(stateDir);
  });

  test('before it is decided is no holder to wait for for ever', { timeout: 120_000 }, async () => {
    const undecided = createServer((socket) => void socket.on('error', () => undefined).write('pid 7 starting\n'));
    await once(undecided.listen(join(stateDir, 's.ffffffff')), 'listening');
    await expect(SingleInstance.acquire(stateDir, SOON)).rejects.toThrow('(it does not answer)');
    undecided.close();
    await once(undecided, 'close');
    await once(undecided.listen(join(stateDir, 's.00000000')), 'listening');
    await expect(SingleInstance.acquire(stateDir)).rejects.toThrow('(pid 7)');
    undecided.close();
    await once(undecided, 'close');
  });
});

/** A process that tries to hold the state directory when it is told to. */
class Contender implements AsyncDisposable {
  static #program: string | undefined;
  readonly child: ChildProcess;
  readonly #answers: AsyncIterator<string>;

  private constructor(child: ChildProcess) {
    this.child = child;
    if (child.stdout === null) throw new Error('its answers are read');
    this.#answers = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  static async start(stateDir: string): Promise<Contender> {
    this.#program ??= await bundled(PROGRAM);
    const child = spawn(process.execPath, ['--input-type=module', '-e', this.#program, stateDir], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    const contender = new Contender(child);
    await contender.told('');
    return contender;
  }

  /** Its answer, or undefined when it has ended. */
  async told(order: string): Promise<string | undefined> {
    this.child.stdin?.write(`${order}\n`);
    const { value } = (await this.#answers.next()) as { value: string | undefined };
    return value;
  }

  async kill(): Promise<void> {
    if (this.child.exitCode !== null || this.child.signalCode !== null) return;
    this.child.kill('SIGKILL');
    await once(this.child, 'exit');
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
  }
}

class Crowd implements AsyncDisposable {
  readonly contenders: Contender[];
  readonly #stateDir: string;

  private constructor(contenders: Contender[], stateDir: string) {
    this.contenders = contenders;
    this.#stateDir = stateDir;
  }

  static async start(count: number, stateDir: string): Promise<Crowd> {
    return new Crowd(await Promise.all(Array.from({ length: count }, () => Contender.start(stateDir))), stateDir);
  }

  /** Kills one and starts another in its place. */
  async replace(index: number): Promise<void> {
    await this.contenders[index]?.kill();
    this.contenders[index] = await Contender.start(this.#stateDir);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.contenders.map((each) => each.kill()));
  }
}

async function bundled(contents: string): Promise<string> {
  const stdin = { contents, resolveDir: '/', loader: 'ts' as const };
  const { outputFiles } = await build({
    ...{ stdin, bundle: true, write: false, platform: 'node', format: 'esm', target: 'node20' },
  });
  return outputFiles[0]?.text ?? '';
}

/** `witness` is a directory only one can have at a time; one that was killed left it to who comes next. */
const PROGRAM = `
  import { AlreadyRunning, SingleInstance } from ${JSON.stringify(MODULE)};
  import { readFileSync, rmSync, writeFileSync } from 'node:fs';
  import { connect } from 'node:net';
  import { createInterface } from 'node:readline';
  const stateDir = process.argv.at(-1)!;
  const witness = stateDir + '/witness';

  for await (const order of createInterface({ input: process.stdin })) {
    const [verb, count] = order.split(' ');
    console.log(verb === 'try' ? await attempt() : verb === 'spin' ? await spin(Number(count)) : 'ready');
  }

  async function attempt() {
    try {
      globalThis.held = await SingleInstance.acquire(stateDir);
      return 'held';
    } catch (error) {
      return error instanceof AlreadyRunning ? 'refused' : String(error);
    }
  }

  async function spin(count) {
    let held = 0;
    for (let turn = 0; turn < count; turn += 1) {
      const answer = await attempt();
      if (answer === 'refused') continue;
      if (answer !== 'held') return answer;
      const other = witnessed();
      while (other !== undefined && isAlive(other)) { // a process that was killed is one until its parent knows it
        if (witnessed() !== other) return other + ' held it, too';
        await new Promise((resolve) => setImmediate(resolve));
      }
      writeFileSync(witness, String(process.pid));
      await new Promise((resolve) => setImmediate(resolve));
      if (witnessed() !== process.pid) return witnessed() + ' came beside us';
      rmSync(witness);
      await globalThis.held[Symbol.asyncDispose]();
      held += 1;
    }
    return 'spun, held ' + held;
  }

  function witnessed() {
    try {
      return Number(readFileSync(witness, 'utf8'));
    } catch {
      return undefined;
    }
  }

  function isAlive(pid) {
    try {
      process.kill(pid, 0);
      return true;
    } catch {
      return false;
    }
  }
`;
