import { z } from 'zod';
import { toAppError } from '../shared/errors.ts';
import { fetchBody } from '../shared/http-client.ts';
import type { Log } from '../shared/log.ts';
import { LIMITS } from '../shared/limits.ts';
import { withServedId } from './config.ts';
import type { ConfiguredModel } from './configured-model.ts';

const ANSWER_MS = 2_000;

/**
 * An attached server may be configured by its address alone: then it is called what it says it serves, whatever that was
 * before. One that does not answer keeps the name it has in `known`, or its alias until it does.
 */
export async function withServedIds(
  models: readonly ConfiguredModel[],
  { known, signal, log }: { known: readonly ConfiguredModel[]; signal: AbortSignal; log: Log },
): Promise<ConfiguredModel[]> {
  return await Promise.all(
    models.map(async (model) => {
      if (!isNamedByServer(model)) return model;
      const { url } = model.launch;
      try {
        return withServedId(model, await servedId(url, signal));
      } catch (error) {
        const before = known.find(
          ({ alias, launch }) => alias === model.alias && 'url' in launch && launch.url === url,
        );
        if (before !== undefined && !isNameless(before)) return withServedId(model, before.id);
        const reason = toAppError(error).message;
        log.debug({ event: 'served-model-unknown', model: model.alias, url, reason });
        return model;
      }
    }),
  );
}

type Attached = ConfiguredModel & { launch: { kind: 'attached' } };

/** It is called what it says. */
export function isNamedByServer(model: ConfiguredModel): model is Attached {
  return model.launch.kind === 'attached' && model.launch.isNamedByServer === true;
}

/** Nobody has said yet which model this attached server serves. */
export function isNameless(model: ConfiguredModel): model is Attached {
  return isNamedByServer(model) && model.id === model.alias;
}

const ServedModels = z.object({ data: z.array(z.object({ id: z.string().min(1).max(200) })).min(1) });

async function servedId(url: string, signal: AbortSignal): Promise<string> {
  const { body } = await fetchBody(`${url}/v1/models`, {
    signal,
    deadlineMs: ANSWER_MS,
    maxBytes: LIMITS.frameBytes.value,
  });
  const [first] = ServedModels.parse(JSON.parse(body.toString())).data;
  if (first === undefined) throw new Error('the server lists no model');
  return first.id;
}
