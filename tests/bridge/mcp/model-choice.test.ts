import { describe, expect, test } from 'vitest';
import type { ConnectedHost } from '../../../bridge/mcp/hosts.ts';
import { connectedHosts, linkProblem, namedHosts } from '../../../bridge/mcp/hosts.ts';
import { chooseModel, findModel } from '../../../bridge/mcp/model-choice.ts';
import { AppError } from '../../../shared/errors.ts';
import type { ModelStatus } from '../../../shared/host-snapshot.ts';
import type { Capability } from '../../../shared/model-profile.ts';
import { profileFor } from '../../../shared/profiles.ts';

function model(id: string, alias: string, capabilities: Capability[]): ModelStatus {
  return {
    model: id,
    alias,
    engine: 'vllm-omni',
    isAttached: false,
    profile: { ...profileFor(id).profile, capabilities },
    profileFrom: 'shipped',
    state: 'released',
    gpus: [],
    heldMiB: 0,
    isPinned: false,
    loadedMiB: 0,
    peakMiB: 0,
    isMeasured: false,
    loadMs: 0,
    wakeMs: 0,
    service: { fixedMs: 0, unitMs: 1, samples: 0 },
    idleMs: 0,
    heldAwayMs: 0,
    jobsDone: 0,
    loads: 0,
    offloads: 0,
    releases: 0,
    slots: [],
  };
}

function host(name: string, models: ModelStatus[]): ConnectedHost {
  return {
    name,
    url: `ws://${name}:7801`,
    link: { kind: 'up', latencyMs: 1 },
    statusAgeMs: 0,
    transferMs: 0,
    snapshot: {
      agentId: name,
      hostname: name,
      agentVersion: '0.1.0',
      isSimulated: true,
      isDraining: false,
      driver: null,
      problems: [],
      gpus: [],
      memory: { totalMiB: 0, freeMiB: 0 },
      disk: { freeMiB: null },
      models,
      offered: [],
    },
  };
}

const klein = model('black-forest-labs/FLUX.2-klein-4B@0123', 'klein', ['generate']);
const qwen = model('Qwen/Qwen-Image-2512', 'qwen', ['generate']);
const step1x = model('stepfun-ai/Step1X-Edit', 'edit', ['edit']);
const hosts = [host('a', [klein, qwen]), host('b', [qwen, step1x]), host('c', [])];

describe('a model is found', () => {
  test.each([
    ['by its id', 'Qwen/Qwen-Image-2512', qwen.model],
    ['by its id with the revision', klein.model, klein.model],
    ['by its repository', 'black-forest-labs/FLUX.2-klein-4B', klein.model],
    ['by its alias', 'klein', klein.model],
    ['in other letters', 'QWEN/qwen-image-2512', qwen.model],
  ])('%s', (_, name, expected) => {
    expect(findModel(hosts, name).id).toBe(expected);
  });

  test('or else the known ones are named, nearest first', () => {
    expect(() => findModel(hosts, 'klien')).toThrow(
      "Model 'klien' is configured on no connected host. Did you mean klein? Known models: Qwen/Qwen-Image-2512 (qwen), ",
    );
  });

  test('of one host it is said that it is not there, for others may have it', () => {
    expect(() => findModel([host('b', [qwen, step1x])], 'klein')).toThrow(
      "Model 'klein' is not configured on b. Known models there: Qwen/Qwen-Image-2512 (qwen), ",
    );
  });
});

describe('a call without a model takes', () => {
  test('the configured default, and says so', () => {
    const chosen = chooseModel(hosts, { asked: undefined, configured: 'klein', capability: 'generate' });
    expect(chosen).toMatchObject({
      id: klein.model,
      note: `No model was named: ${klein.model} is the configured default.`,
    });
  });

  test('the capable one on the most hosts, and says so', () => {
    const chosen = chooseModel(hosts, { asked: undefined, configured: undefined, capability: 'generate' });
    expect(chosen).toMatchObject({ id: qwen.model });
    expect(chosen.note).toContain('on the most hosts (2)');
  });

  test('on a named host the one of its models that most hosts have, whatever their names', () => {
    const early = model('Aaa/first-by-name', 'early', ['generate']);
    const only = host('d', [early, qwen]);
    const wish = { asked: undefined, configured: undefined, capability: 'generate' } as const;
    expect(chooseModel([only], { ...wish, everywhere: [...hosts, only] }).id).toBe(qwen.model);
    expect(chooseModel([only], wish).id).toBe(early.model);
  });

  test('among equals the first by name', () => {
    const equal = [host('a', [qwen, klein])];
    expect(chooseModel(equal, { asked: undefined, configured: undefined, capability: 'generate' }).id).toBe(qwen.model);
  });

  test('none where none is capable', () => {
    const wish = { asked: undefined, configured: undefined, capability: 'edit' as const };
    expect(() => chooseModel([host('a', [qwen])], wish)).toThrow(
      /No connected host has a model that can edit images\. Known models: Qwen/,
    );
  });
});

test('a named model wins over the default and needs no note', () => {
  expect(chooseModel(hosts, { asked: 'qwen', configured: 'klein', capability: 'generate' })).toMatchObject({
    id: qwen.model,
    note: undefined,
  });
});

describe('hosts', () => {
  const down = {
    ...host('d', []),
    snapshot: undefined,
    link: { kind: 'down' as const, error: new AppError('AUTH_FAILED', 'The token was refused.'), retryInMs: 1_500 },
  };

  test('an unknown name is refused with the nearest', () => {
    expect(() => namedHosts([...hosts, host('rack', [])], 'rak')).toThrow(
      "Unknown host 'rak'. Did you mean rack? Known hosts: a, b, c, rack.",
    );
  });

  test('only connected ones are asked, and one that is named and down gives its own error', () => {
    expect(connectedHosts([...hosts, down], undefined).map(({ name }) => name)).toEqual(['a', 'b', 'c']);
    expect(() => connectedHosts([...hosts, down], 'd')).toThrow(
      expect.objectContaining({ code: 'AUTH_FAILED' }) as Error,
    );
    const other = { ...down, name: 'e' };
    expect(() => connectedHosts([down, other], undefined)).toThrow(
      /No host is connected\. d \(ws:\/\/d:7801\): AUTH_FAILED: .* e \(ws/,
    );
  });

  test('what is wrong with a link is said with its code and when it is tried again', () => {
    expect(linkProblem(down)).toBe('AUTH_FAILED: The token was refused. Next attempt in 2 s.');
    expect(linkProblem({ ...down, link: { kind: 'connecting' } })).toMatch(/still connecting/);
  });
});
