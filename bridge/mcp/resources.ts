import type { ResourceDesk } from './desks.ts';
import { noSuchResource } from './desks.ts';

/** Everything that clients may read. */
export const RESOURCES: ResourceDesk = {
  list: async () => [],
  templates: () => [],
  read: async (uri) => {
    throw noSuchResource(uri, 'See resources/list.');
  },
};
