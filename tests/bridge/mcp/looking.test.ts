import { describe, expect, test } from 'vitest';
import type { Fleet } from '../../../bridge/fleet/fleet.ts';
import type { Tool, ToolContext } from '../../../bridge/mcp/tool.ts';
import { estimateGeneration } from '../../../bridge/mcp/tools/estimate-generation.ts';
import { getModelInfo } from '../../../bridge/mcp/tools/get-model-info.ts';
import { listJobs } from '../../../bridge/mcp/tools/list-jobs.ts';
import { listPresets } from '../../../bridge/mcp/tools/list-presets.ts';
import { profileFor } from '../../../shared/profiles.ts';
import { gpu, model, slot, snapshot } from '../fleet/builders.ts';
import { Laptop, opened } from '../fleet/fleet-fixture.ts';
import { ScriptedAgent } from '../fleet/scripted-agent.ts';

const KLEIN = 'black-forest-labs/FLUX.2-klein-4B';
const STEP1X = 'stepfun-ai/Step1X-Edit';

function shipped(id: string, o: Parameters<typeof model>[0] = {}) {
  return model({ model: id, alias: id, profile: profileFor(id).profile, slots: [slot({ slotId: id })], ...o });
}

const loaded = shipped(KLEIN, {
  loadedMiB: 15_000,
  peakMiB: 22_000,
  service: { fixedMs: 500, unitMs: 100, samples: 3 },
});

/** The tool with a fleet of scripted agents, without a server around it. */
async function ask(
  tool: Tool,
  args: Record<string, unknown>,
  fleet: Fleet,
  settings: Partial<ToolContext['settings']> = {},
): Promise<Record<string, unknown>> {
  const context: Pick<ToolContext, 'fleet' | 'settings'> = {
    fleet: async () => fleet,
    settings: {
      ...{ outputDir: undefined, defaultModel: undefined, defaultEditModel: undefined, preview: 'inline' },
      ...settings,
    },
  };
  const result = await tool.call(args, context as ToolContext); // tools that look use no more of it
  return result.structuredContent ?? {};
}

async function withModels(models: Parameters<typeof snapshot>[0], run: (fleet: Fleet) => Promise<void>): Promise<void> {
  await using agent = await ScriptedAgent.start('a', { isManual: true, snap: snapshot(models) });
  await using laptop = await Laptop.create();
  await run(await opened(laptop.fleet([agent])));
}

describe('estimate_generation', () => {
  test('says what one image takes on a host that has measured it', async () => {
    await withModels({ models: [loaded] }, async (fleet) => {
      const answer = await ask(estimateGeneration, { width: 1000 - (1000 % 16), height: 1024 }, fleet);
      expect(answer).toMatchObject({
        model: KLEIN,
        num_images: 1,
        resolution: '992x1024',
        total_megapixels_per_image: 1.02,
        estimated_time_per_image_seconds: 0.91, // 0.5 s and 4 steps at 1.016 megapixels
        estimated_total_time_seconds: 0.91,
        recommended_concurrent: 1,
        basis: 'measured',
        placement: [
          {
            host: 'a',
            images: 1,
            loading_seconds: 0,
            basis: 'measured',
            reason: expect.stringMatching(/^Free, /) as string,
          },
        ],
        refused: [],
      });
      expect(answer['notes']).toContain('Distilled model, 4 steps.');
    });
  });

  test('counts loading once, and says that the first image waits for it', async () => {
    const cold = { ...loaded, state: 'released' as const, heldMiB: 0, loadMs: 74_000 };
    await withModels({ models: [cold] }, async (fleet) => {
      const answer = await ask(estimateGeneration, { num_images: 10 }, fleet);
      expect(answer['estimated_total_time_seconds']).toBeCloseTo(74 + 10 * 0.92, 1);
      expect(JSON.stringify(answer['notes'])).toContain(
        'Loading usually takes 74 s on a, and the first image after it',
      );
      expect(answer).toMatchObject({ placement: [{ images: 10, loading_seconds: 74 }] });
    });
  });

  test.each<[string, Parameters<typeof model>[0]]>([
    ['the time is a guess', { service: { fixedMs: 500, unitMs: 100, samples: 0 } }],
    ['the memory is a guess', { isMeasured: false }],
  ])('says so where %s', async (_, o) => {
    await withModels({ models: [{ ...loaded, ...o }] }, async (fleet) => {
      const answer = await ask(estimateGeneration, {}, fleet);
      expect(answer['basis']).toBe('estimated');
      expect(JSON.stringify(answer['notes'])).toContain('is a guess from published figures');
    });
  });

  test('estimates an edit where the model only edits', async () => {
    await withModels({ models: [shipped(STEP1X)] }, async (fleet) => {
      const answer = await ask(estimateGeneration, { width: 512, num_inference_steps: 20 }, fleet);
      expect(answer).toMatchObject({ model: STEP1X, resolution: 'size_level 1024' });
      expect(JSON.stringify(answer['notes'])).toContain('width and height were ignored');
      expect(answer['notes']).toContain('Standard model, 20 steps.');
    });
  });

  test('a size that a call would be refused for is refused here with the same words', async () => {
    await withModels({ models: [loaded] }, async (fleet) => {
      await expect(ask(estimateGeneration, { width: 1000 }, fleet)).rejects.toThrow(
        'Width 1000 is not a multiple of 16. Nearest valid width is 1008.',
      );
    });
  });

  test('of a batch of a model that a person moved off its GPU has the load in it, and says what it would wait for first', async () => {
    const away = { ...loaded, state: 'released' as const, heldMiB: 0, loadMs: 74_000, heldAwayMs: 240_000 };
    await withModels({ models: [away] }, async (fleet) => {
      const answer = await ask(estimateGeneration, { num_images: 10 }, fleet);
      expect(answer['estimated_total_time_seconds']).toBeCloseTo(74 + 10 * 0.92, 1);
      expect(JSON.stringify(answer['notes'])).toMatch(
        /A person moved \S+ off its GPU on a: a batch leaves it away for another 4 min, .* load_model ends that wait\./,
      );
    });
  });

  test('where no host can make it, each says why', async () => {
    await withModels({ models: [loaded], isDraining: true }, async (fleet) => {
      await expect(ask(estimateGeneration, {}, fleet)).rejects.toThrow(
        /^Type `gantry resume a` to let a work again\. No host can run .*: a: is draining/,
      );
    });
  });

  test('more than one GPU full of slots is recommended only as far as the memory goes', async () => {
    const slots = Array.from({ length: 6 }, (_, n) => slot({ slotId: `s${n}` }));
    await withModels({ models: [{ ...loaded, slots }], gpus: [gpu({ freeMiB: 6_500 })] }, async (fleet) => {
      expect(await ask(estimateGeneration, {}, fleet)).toMatchObject({ recommended_concurrent: 3 });
      const limited = await ask(estimateGeneration, {}, fleet, { maxConcurrent: 2 });
      expect(limited).toMatchObject({ recommended_concurrent: 2 });
    });
  });
});

describe('get_model_info', () => {
  test('tells what the profile recommends, what was measured, and how to write prompts', async () => {
    await withModels({ models: [loaded] }, async (fleet) => {
      expect(await ask(getModelInfo, {}, fleet)).toMatchObject({
        model_name: KLEIN,
        model_type: 'distilled',
        recommended_parameters: { num_inference_steps: 4, guidance_scale: 1, default_resolution: '1024x1024' },
        supports_negative_prompt: false,
        supported_aspect_ratios: { '16:9': '1024x576' },
        estimated_vram_gb: 22,
        measured_vram_gb: 21.48,
        in_registry: true,
        prompt_guidance: { family: 'FLUX.2 klein' },
        hosts: [{ host: 'a', is_measured: true, model_location: 'GPU' }],
      });
    });
  });

  test('a model without a profile carries the fall-back note, and no measured VRAM before a measurement', async () => {
    const unknown = shipped('acme/unknown', { profileFrom: 'fallback', isMeasured: false });
    await withModels({ models: [unknown] }, async (fleet) => {
      const answer = await ask(getModelInfo, { model: 'acme/unknown' }, fleet);
      expect(answer).toMatchObject({ in_registry: false });
      expect(answer).not.toHaveProperty('measured_vram_gb');
      expect(answer).not.toHaveProperty('prompt_guidance');
      expect(answer['notes']).toContain(
        "Model 'acme/unknown' is not in the known profiles. Using fallback defaults (steps=28, guidance=5.0). " +
          'Generation may produce unexpected results.',
      );
    });
  });

  test('an unknown model is refused with the nearest name', async () => {
    await withModels({ models: [loaded] }, async (fleet) => {
      await expect(ask(getModelInfo, { model: 'FLUX.2-klein-4b' }, fleet)).rejects.toThrow(/Did you mean .*klein-4B/);
    });
  });
});

describe('list_presets', () => {
  test('tells the sizes of the model, and its rule for others', async () => {
    await withModels({ models: [loaded] }, async (fleet) => {
      expect(await ask(listPresets, {}, fleet)).toMatchObject({
        model: KLEIN,
        resolution_multiple: 16,
        max_megapixels: 4,
        presets: { '1:1': '1024x1024', '9:16': '576x1024' },
      });
    });
  });

  test('of a model that has size levels', async () => {
    await withModels({ models: [shipped(STEP1X)] }, async (fleet) => {
      const answer = await ask(listPresets, { model: STEP1X }, fleet);
      expect(answer).toMatchObject({ presets: {} });
      expect(JSON.stringify(answer['notes'])).toContain('size_level 512, 768 or 1024');
    });
  });
});

describe('list_jobs', () => {
  test('tells what is under way and what ended, newest first, and only a state that was asked for', async () => {
    await using agent = await ScriptedAgent.start('a', { isManual: true });
    await using laptop = await Laptop.create();
    const fleet = await opened(laptop.fleet([agent]));
    expect(await ask(listJobs, {}, fleet)).toMatchObject({ message: 'There are no jobs.', jobs: [] });
    const ended = await fleet.start(laptop.order(1));
    await ended.cancel();
    const running = await fleet.start(laptop.order(3));
    const all = await ask(listJobs, {}, fleet);
    expect(all['jobs']).toMatchObject([
      { batch_id: running.id, state: 'running', total: 3, is_ours: true },
      { batch_id: ended.id, job_id: ended.view().jobs[0]?.jobId, state: 'cancelled', total: 1, cancelled: 1 },
    ]);
    expect(await ask(listJobs, { state: 'running' }, fleet)).toMatchObject({ jobs: [{ batch_id: running.id }] });
    expect(await ask(listJobs, { limit: 1 }, fleet)).toMatchObject({ jobs: [{ batch_id: running.id }] });
    expect(await ask(listJobs, { state: 'failed' }, fleet)).toMatchObject({ jobs: [] });
    await running.cancel();
  });
});
