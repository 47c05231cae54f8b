import { existsSync, statSync, writeFileSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { once } from 'node:events';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { GroupSocket, unitDirectory } from '../../agent/group-socket.ts';

test('the directories of a unit are called after its state directory, and no other has any', () => {
  expect(unitDirectory('/var/lib/gantry', 'run')).toBe('/run/gantry');
  expect(unitDirectory('/var/lib/gantry', 'cache')).toBe('/var/cache/gantry');
  for (const path of ['/srv/gantry', '/var/lib/a/b', './state']) expect(unitDirectory(path, 'run')).toBeUndefined();
});

test('the door of the group is open to it alone, replaces what a dead agent left, and is gone with the agent', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'gantry-door-'));
  const path = join(dir, 'agent.sock');
  try {
    writeFileSync(path, 'left over');
    const served: string[] = [];
    const door = await GroupSocket.open(path, (socket) => {
      served.push('served');
      socket.end();
    });
    expect(statSync(path).mode & 0o777).toBe(0o660);
    const client = connect(path);
    const [greeting] = (await once(client, 'data')) as [Buffer]; // a socket without an encoding
    expect(greeting.toString()).toBe(`pid ${process.pid}\n`);
    await once(client, 'close');
    expect(served).toEqual(['served']);
    await door[Symbol.asyncDispose]();
    expect(existsSync(path)).toBe(false);
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
});
