import { EventEmitter } from 'node:events';
import { afterEach, describe, expect, test } from 'vitest';
import { AuthFailures } from '../../../agent/rpc/auth-failures.ts';
import { addressOf, ConnectionBudget } from '../../../agent/rpc/connection-budget.ts';
import { RequestQuota } from '../../../agent/rpc/request-quota.ts';

const LIMITS = { unknownPerAddress: 3, unknown: 5, known: 2, showTokenMs: 60_000, crowdedMs: 0 };

describe('connections without a token', () => {
  const open: FakeSocket[] = [];
  afterEach(() => {
    for (const socket of open.splice(0)) socket.destroy(); // their deadlines go with them
  });

  test('of one address: the oldest goes, and who has shown a token stays', async () => {
    const budget = new ConnectionBudget(LIMITS);
    const known = connection('10.0.0.1');
    budget.add(known);
    expect(budget.know(known)).toBe(true);
    const [oldest, ...others] = [1, 2, 3, 4].map(() => connection('10.0.0.1'));
    const neighbour = connection('10.0.0.2');
    for (const each of [oldest, ...others, neighbour]) if (each !== undefined) budget.add(each);
    await ended(oldest);
    expect([known, ...others, neighbour].map(({ destroyed }) => destroyed)).toEqual([
      false,
      false,
      false,
      false,
      false,
    ]);
  });

  test('of all addresses: the oldest of all goes at once', () => {
    const budget = new ConnectionBudget(LIMITS);
    const sockets = [1, 2, 3, 4, 5, 6].map((number) => connection(`10.0.0.${number}`));
    for (const each of sockets) budget.add(each);
    expect(sockets.map(({ destroyed }) => destroyed)).toEqual([true, false, false, false, false, false]);
  });

  test('end after a while, whatever they do', async () => {
    const budget = new ConnectionBudget({ ...LIMITS, showTokenMs: 10 });
    const silent = connection('10.0.0.1');
    budget.add(silent);
    await ended(silent);
  });

  test('those with a token have a limit of their own, and give their place back', () => {
    const budget = new ConnectionBudget(LIMITS);
    const three = [1, 2, 3].map(() => connection('10.0.0.1'));
    for (const each of three) budget.add(each);
    expect(three.map((each) => budget.know(each))).toEqual([true, true, false]);
    three[0]?.destroy();
    expect(budget.know(three[2] ?? connection('x'))).toBe(true);
  });

  function connection(remoteAddress: string): FakeSocket {
    const socket = new FakeSocket(remoteAddress, open.length + 1);
    open.push(socket);
    return socket;
  }
});

test.each([
  ['10.1.2.3', '10.1.2.3'],
  ['::ffff:10.1.2.3', '10.1.2.3'],
  ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2'],
  ['2001:db8::1', '2001:db8:0:0'],
  ['::1', '0:0:0:0'],
])('%s counts as %s: of IPv6 everybody has many', (remoteAddress, counted) => {
  expect(addressOf({ remoteAddress })).toBe(counted);
});

describe('failed logins', () => {
  test('five in a minute are too many, and it takes longer each time', () => {
    const failures = new AuthFailures();
    for (let at = 0; at < 4; at += 1) failures.note('a', at * 1_000);
    expect(failures.blockedMs('a', 4_000)).toBe(0);
    failures.note('a', 4_000);
    expect(failures.blockedMs('a', 4_000)).toBe(60_000);
    expect(failures.blockedMs('b', 4_000)).toBe(0);
    failures.note('a', 5_000);
    expect(failures.blockedMs('a', 5_000)).toBe(120_000);
    for (let more = 0; more < 20; more += 1) failures.note('a', 6_000);
    expect(failures.blockedMs('a', 6_000)).toBe(900_000);
    expect(failures.blockedMs('a', 906_000)).toBe(0);
  });

  test('one laptop that is misconfigured, twice a minute for hours, is not blocked', () => {
    const failures = new AuthFailures();
    for (let at = 0; at < 3_600_000; at += 30_000) {
      failures.note('a', at);
      expect(failures.blockedMs('a', at)).toBe(0);
    }
  });

  test('any number of addresses is remembered up to a bound', () => {
    const failures = new AuthFailures();
    for (let at = 0; at < 5; at += 1) failures.note('first', at);
    for (let number = 0; number < 10_000; number += 1) failures.note(`a${number}`, 10);
    expect(failures.blockedMs('first', 20)).toBe(0);
  });
});

describe('requests of a token', () => {
  test('500 at once, then 100 in a second, and another token does not feel it', () => {
    const quota = new RequestQuota();
    const asks = (token: string, nowMs: number): string =>
      quota.refusal(token, { what: 'job.get', nowMs }) === undefined ? 'ok' : 'refused';
    for (let count = 0; count < 500; count += 1) expect(asks('a', 0)).toBe('ok');
    expect(asks('a', 0)).toBe('refused');
    expect(quota.refusal('a', { what: 'job.get', nowMs: 0 })).toMatchObject({ code: 'RATE_LIMITED', retryAfterMs: 10 });
    expect(asks('b', 0)).toBe('ok');
    expect([asks('a', 10), asks('a', 10)]).toEqual(['ok', 'refused']);
    expect(quota.refusal('a', { what: 'job.ack', nowMs: 10 })).toBeUndefined(); // it ends what was begun
  });
});

/** What the budget asks of a socket: whose it is, and to end it. */
class FakeSocket extends EventEmitter {
  readonly remoteAddress: string;
  readonly remotePort: number;
  destroyed = false;

  constructor(remoteAddress: string, remotePort: number) {
    super();
    this.remoteAddress = remoteAddress;
    this.remotePort = remotePort;
  }

  destroy(): void {
    if (this.destroyed) return;
    this.destroyed = true;
    this.emit('close');
  }
}

async function ended(socket: FakeSocket | undefined): Promise<void> {
  await expect.poll(() => socket?.destroyed, { timeout: 10_000 }).toBe(true);
}
