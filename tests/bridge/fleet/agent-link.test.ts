import { describe, expect, test } from 'vitest';
import { WebSocketServer } from 'ws';
import { once } from 'node:events';
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { certificateOf } from '../../../agent/certificate.ts';
import { SERVER_NAME } from '../../../shared/limits.ts';
import { createLog } from '../../../shared/log.ts';
import type { Fleet } from '../../../bridge/fleet/fleet.ts';
import { ended, Laptop, opened, until } from './fleet-fixture.ts';
import { ScriptedAgent } from './scripted-agent.ts';

const never = new AbortController().signal;

test('a link comes up with a snapshot, follows deltas, and measures its latency', async () => {
  await using a = await ScriptedAgent.start('a');
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  expect(fleet.hosts()[0]).toMatchObject({
    name: 'a',
    link: { kind: 'up' },
    snapshot: { hostname: 'a', isDraining: false },
  });
  a.script.snap = { isDraining: true };
  a.status();
  await until(() => fleet.hosts()[0]?.snapshot?.isDraining === true, 'the delta');
  expect(a.helloes).toBe(1);
});

test('a gap in the deltas asks for everything anew', async () => {
  await using a = await ScriptedAgent.start('a');
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  a.script.snap = { isDraining: true };
  a.status({ isGap: true });
  await a.until(() => a.helloes === 2);
  await until(
    () => fleet.hosts()[0]?.snapshot?.isDraining === true && fleet.hosts()[0]?.link.kind === 'up',
    'snapshot',
  );
});

test('a refused token is AUTH_FAILED, and is tried on slowly', async () => {
  await using a = await ScriptedAgent.start('a', { token: 'right' });
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([{ ...a.config, token: 'wrong' }]));
  const [view] = fleet.hosts();
  expect(view?.link).toMatchObject({ kind: 'down', error: { code: 'AUTH_FAILED' } });
  expect(view?.link.kind === 'down' && view.link.error.message).not.toContain('wrong');
  await expect(fleet.request('a', 'model.load', { model: 'x' }, never)).rejects.toMatchObject({ code: 'AUTH_FAILED' });
});

test('a host that is not there is AGENT_UNREACHABLE with its address, and comes when it comes', async () => {
  await using gone = await ScriptedAgent.start('a');
  const { config } = gone;
  gone.refuseWith = 500;
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([config, { name: 'b', url: 'ws://127.0.0.1:1', token: 't' }]));
  const [a, b] = fleet.hosts();
  expect(a?.link).toMatchObject({ kind: 'down', error: { code: 'AGENT_UNREACHABLE' } });
  expect(b?.link.kind === 'down' && b.link.error.message).toMatch(
    /No connection to b at ws:\/\/127.0.0.1:1: .*ECONNREFUSED/,
  );
  gone.refuseWith = undefined;
  await until(() => fleet.hosts()[0]?.link.kind === 'up', 'up');
});

describe('one agent under two names', () => {
  const why = (fleet: Fleet, name: string) => {
    const link = fleet.hosts().find((host) => host.name === name)?.link;
    return link?.kind === 'down' ? link.error : undefined;
  };

  test('gets work under one of them, and under the other when that one is gone', async () => {
    await using agent = await ScriptedAgent.start('a', { hasManySessions: true });
    await using laptop = await Laptop.create();
    const fleet = await opened(laptop.fleet([agent, { ...agent.config, name: 'b' }]));
    const isUp = (name: string) => fleet.hosts().find((host) => host.name === name)?.link.kind === 'up';
    const [used, other] = isUp('a') ? ['a', 'b'] : ['b', 'a'];
    await until(() => why(fleet, other)?.code === 'INVALID_ARGUMENT', 'the other says why');
    expect(why(fleet, other)?.message).toMatch(
      new RegExp(
        `^${other} at ws://.* is the same agent as ${used}, .*\\. Forget one .*: \`gantry remove ${other}\`\\.$`,
      ),
    );
    const view = await ended(await fleet.start(laptop.order(2)));
    expect(view.jobs.map(({ host }) => host)).toEqual([used, used]);
    expect(agent.helloes).toBe(2);
    agent.restart(); // its next run is another epoch, and either may be first
    await until(() => isUp('a') !== isUp('b'), 'one of them again');
  });

  test('with one token, by which an agent ends the older link for the newer one, they do not end each other for ever', async () => {
    await using agent = await ScriptedAgent.start('a');
    await using laptop = await Laptop.create();
    const fleet = await opened(laptop.fleet([agent, { ...agent.config, name: 'b' }]));
    await until(() => ['a', 'b'].some((name) => why(fleet, name)?.code === 'INVALID_ARGUMENT'), 'one says why');
    const { helloes } = agent;
    const view = await ended(await fleet.start(laptop.order(3)));
    expect(view.state).toBe('success');
    expect(new Set(view.jobs.map(({ host }) => host)).size).toBe(1);
    expect(agent.count('job.cancel')).toBe(0);
    expect(agent.helloes).toBe(helloes);
  });
});

test('another certificate than the pinned one is AUTH_FAILED, says what to do, and sees no token', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'gantry-link-'));
  const silent = createLog({ name: 'test', to: 'stderr', level: 'silent' });
  const [before, now] = [join(dir, 'before'), join(dir, 'now')];
  await mkdir(before);
  await mkdir(now);
  const pinned = await certificateOf(before, silent);
  const server = createServer(await certificateOf(now, silent), () => expect.unreachable('a request came through'));
  server.on('upgrade', () => expect.unreachable('an upgrade came through'));
  await once(server.listen(0, '127.0.0.1'), 'listening');
  const url = `wss://127.0.0.1:${(server.address() as AddressInfo).port}`; // it listens on a port
  await using laptop = await Laptop.create();
  const host = { url, token: 'secret' };
  const tls = { ca: pinned.cert, servername: SERVER_NAME };
  const fleet = await opened(
    laptop.fleet([
      { ...host, name: 'a', tls },
      { ...host, name: 'b' },
    ]),
  );
  const messages = fleet
    .hosts()
    .map(({ link }) => (link.kind === 'down' ? `${link.error.code}: ${link.error.message}` : ''));
  expect(messages[0]).toMatch(
    /^AUTH_FAILED: Whoever answers at wss:.* another certificate than a had .*nothing was sent/,
  );
  expect(messages[0]).toContain('`gantry remove a` and `gantry add`');
  expect(messages[1]).toMatch(/^AUTH_FAILED: No authority vouches for the certificate of b .*nothing was sent/);
  const closed = once(server.close(), 'close');
  server.closeAllConnections();
  await closed;
  await rm(dir, { recursive: true });
});

test('silence ends a link', async () => {
  const mute = new WebSocketServer({ port: 0, host: '127.0.0.1', autoPong: false });
  await once(mute, 'listening');
  mute.on('connection', (client) =>
    client.on('message', (data: Buffer) => {
      const { id } = JSON.parse(data.toString('utf8')) as { id: number };
      client.send(JSON.stringify({ jsonrpc: '2.0', id, result: { agentId: 'm', epoch: 'e', jobs: [] } }));
    }),
  );
  const { port } = mute.address() as AddressInfo;
  await using laptop = await Laptop.create();
  const fleet = laptop.fleet([{ name: 'mute', url: `ws://127.0.0.1:${port}`, token: 't' }]);
  fleet.open();
  await until(() => fleet.hosts()[0]?.link.kind === 'up', 'up');
  await until(() => fleet.hosts()[0]?.link.kind === 'down', 'silent');
  const link = fleet.hosts()[0]?.link;
  expect(link?.kind === 'down' && link.error.message).toMatch(/silent for 600 ms/);
  await fleet.detach();
  mute.close();
});

test('an invalid frame closes the link', async () => {
  await using a = await ScriptedAgent.start('a');
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  a.sendRaw('{"jsonrpc":"2.0","method":"job.done","params":{"jobId":7}}');
  await until(() => fleet.hosts()[0]?.link.kind === 'down', 'closed');
  await a.until(() => a.helloes === 2);
});

test('a notification of a newer agent is ignored', async () => {
  await using a = await ScriptedAgent.start('a');
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  a.sendRaw('{"jsonrpc":"2.0","method":"weather.changed","params":{"is":"fine"}}');
  a.status();
  await until(() => (fleet.hosts()[0]?.statusAgeMs ?? 9_999) < 500, 'still up');
  expect(a.helloes).toBe(1);
});

test('the end of a link rejects what waits on it', async () => {
  await using a = await ScriptedAgent.start('a');
  await using laptop = await Laptop.create();
  const fleet = await opened(laptop.fleet([a]));
  const asked = fleet.request('a', 'model.load', { model: 'x' }, never);
  await expect(asked).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
  await expect(fleet.request('nobody', 'model.load', { model: 'x' }, never)).rejects.toMatchObject({
    code: 'INVALID_ARGUMENT',
    message: 'No host is named nobody. Configured hosts: a.',
  });
  await expect(fleet.request('a', 'model.load', { model: 'x' }, AbortSignal.abort(new Error('left')))).rejects.toThrow(
    'left',
  );
});
