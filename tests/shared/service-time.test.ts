import { describe, expect, test } from 'vitest';
import { estimateMs, learnServiceTime, workUnits } from '../../shared/service-time.ts';
import { generate } from '../agent/model/model-host.ts';

const SIZES = [
  [512, 512],
  [768, 768],
  [1024, 1024],
  [2048, 2048],
] as const;

describe('the service time of a host', () => {
  test('is what the first job took, and then an average', () => {
    const guess = { fixedMs: 500, unitMs: 100, samples: 0 };
    const request = generate({ width: 1000, height: 1000, steps: 10 });
    const first = learnServiceTime(guess, { request, runMs: 3_000 });
    expect(first).toMatchObject({ fixedMs: 1_000, unitMs: 200, samples: 1 });
    const second = learnServiceTime(first, { request, runMs: 6_000 });
    expect(estimateMs(second, request)).toBeGreaterThan(4_000);
    expect(estimateMs(second, request)).toBeLessThan(5_000);
  });

  test('runs the network twice for classifier-free guidance', () => {
    const request = generate({ width: 1000, height: 1000, steps: 10 });
    expect(workUnits({ ...request, guidance: { field: 'true_cfg_scale', value: 4 } })).toBe(20);
    expect(workUnits({ ...request, guidance: { field: 'true_cfg_scale', value: 1 } })).toBe(10);
    expect(workUnits({ ...request, guidance: { field: 'guidance_scale', value: 4 } })).toBe(10);
  });

  test.each([
    { fixedMs: 2_000, unitMs: 50 },
    { fixedMs: 300, unitMs: 400 },
    { fixedMs: 10_000, unitMs: 100 },
  ])('comes to know $fixedMs + $unitMs per unit from jobs of several sizes', (truth) => {
    let learned = { fixedMs: 500, unitMs: 200, samples: 0 };
    const requestOf = (at: number) => {
      const [width, height] = SIZES[at % 4] ?? [512, 512];
      return generate({ width, height, steps: [4, 9, 28, 50, 20][at % 5] ?? 4 });
    };
    for (let at = 0; at < 100; at += 1) {
      const request = requestOf(at);
      const noise = 0.95 + 0.1 * ((at * 7919) % 100) * 0.01;
      learned = learnServiceTime(learned, {
        request,
        runMs: noise * (truth.fixedMs + truth.unitMs * workUnits(request)),
      });
    }
    for (let at = 0; at < 20; at += 1) {
      const request = requestOf(at);
      const ratio = estimateMs(learned, request) / (truth.fixedMs + truth.unitMs * workUnits(request));
      expect(ratio).toBeGreaterThan(0.75);
      expect(ratio).toBeLessThan(1.33);
    }
  });

  test.each([0, -5, Number.NaN])('learns nothing from a time of %s', (runMs) => {
    const service = { fixedMs: 500, unitMs: 100, samples: 3 };
    expect(learnServiceTime(service, { request: generate(), runMs })).toEqual(service);
  });
});
