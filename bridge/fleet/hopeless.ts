import { AppError } from '../../shared/errors.ts';
import type { BatchOrder } from './batch-order.ts';
import type { HostView } from './host-view.ts';
import { expectedFinishes, refusalText } from './placement.ts';

/** PURE. Why no waiting will help these jobs: every host is known, and none can ever run one of them. */
export function whyHopeless(order: BatchOrder, hosts: readonly HostView[]): AppError | undefined {
  if (hosts.length === 0) {
    return new AppError('NO_HOST', 'No host is configured. Add one under hosts in bridge.yaml and restart the bridge.');
  }
  const views = hosts.filter(({ name }) => order.host === undefined || name === order.host);
  if (!views.every(({ link, snapshot }) => link.kind === 'up' && snapshot !== undefined)) return undefined;
  const requests = new Map(order.jobs.map(({ request }) => [`${request.model} ${request.kind}`, request]));
  for (const request of requests.values()) {
    const { ranked, refused } = expectedFinishes(request, { hosts: views, class: order.class });
    if (ranked.length > 0 || !refused.every(({ isForever }) => isForever)) continue;
    const { model } = request;
    if (views.some(({ snapshot }) => snapshot?.models.some((one) => one.model === model))) {
      return new AppError(
        'NO_HOST',
        `${refusalText(model, refused)} Use another model, or a host with a larger GPU; list_models shows both.`,
      );
    }
    return unknownModel(model, views);
  }
  return undefined;
}

function unknownModel(model: string, views: readonly HostView[]): AppError {
  const known = [...new Set(views.flatMap(({ snapshot }) => snapshot?.models.map((one) => one.model) ?? []))];
  const where = views.length === 1 ? `${views[0]?.name ?? 'The host'} does not have` : 'No host has';
  return new AppError(
    'MODEL_UNKNOWN',
    `${where} the model ${model}. Configured models: ${known.length === 0 ? 'none' : known.join(', ')}.`,
  );
}
