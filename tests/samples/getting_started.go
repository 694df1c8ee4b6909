// The Go samples of Getting Started, one after the other, as a whole program: errors looked at, answers read.
package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
)

type answer struct {
	Status int            `json:"status"`
	Type   string         `json:"type"`
	Body   map[string]any `json:"body"`
}

func put(path string, jsonReq string) answer {

	headers := map[string][]string{
		"Content-Type": []string{"application/json"},
		"Accept":       []string{"application/json"},
		"X-API-KEY":    []string{os.Getenv("EVERPUT_KEY")},
	}

	data := bytes.NewBuffer([]byte(jsonReq))
	req, err := http.NewRequest("PUT", os.Getenv("EVERPUT_API")+path, data)
	if err != nil {
		panic(err)
	}
	req.Header = headers

	client := &http.Client{}
	resp, err := client.Do(req)
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	found := answer{Status: resp.StatusCode, Type: resp.Header.Get("content-type")}
	if err := json.NewDecoder(resp.Body).Decode(&found.Body); err != nil {
		panic(err)
	}
	return found
}

func main() {
	queue := put("/v1/queues", `{"name": "myapp.io/deletion-request-queue"}`)
	again := put("/v1/queues", `{"name": "myapp.io/deletion-request-queue"}`)
	id := queue.Body["queue"].(map[string]any)["id"].(string)
	listener := put("/v1/queues/"+id+"/listeners", `{
		"name": "myapp.io/deletion-request-listener",
		"notify_url": "https://myapp.io/deletion/listener",
		"liveness_url": "https://myapp.io/live"
	}`)
	message := put("/v1/queues/"+id+"/messages", `{"data": "{ \"userId\": \"481512342\" }"}`)
	json.NewEncoder(os.Stdout).Encode(map[string]answer{
		"queue": queue, "again": again, "listener": listener, "message": message,
	})
}
