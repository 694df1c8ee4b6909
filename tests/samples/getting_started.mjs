// The JavaScript samples of Getting Started, one after the other. The body is JSON text: fetch takes no object.
const api = process.env.EVERPUT_API

const headers = {
  'Content-Type': 'application/json',
  'Accept': 'application/json',
  'X-API-KEY': process.env.EVERPUT_KEY
}

async function put(path, body) {
  const response = await fetch(`${api}${path}`, {
    method: 'PUT', body: JSON.stringify(body), headers
  })
  return { status: response.status, type: response.headers.get('content-type'), body: await response.json() }
}

const queue = await put('/v1/queues', {
  "name": "myapp.io/deletion-request-queue"
})

const again = await put('/v1/queues', {
  "name": "myapp.io/deletion-request-queue"
})

const listener = await put(`/v1/queues/${queue.body.queue.id}/listeners`, {
  "name": "myapp.io/deletion-request-listener",
  "notify_url": "https://myapp.io/deletion/listener",
  "liveness_url": "https://myapp.io/live"
})

const message = await put(`/v1/queues/${queue.body.queue.id}/messages`, {
  "data": "{ \"userId\": \"481512342\" }"
})

console.log(JSON.stringify({ queue, again, listener, message }))
